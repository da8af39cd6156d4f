#include "causal_conv1d_plugin.h"

#include "attributes.h"
#include "cuda_runtime.h"
#include "logging.h"

#include <algorithm>
#include <limits>

namespace vimdeploy
{
namespace
{

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

//! Positions of the inputs in the node.
enum Input : size_t
{
    kX,
    kWEIGHT,
    kBIAS
};

} // namespace

OpSpec const& CausalConv1dPlugin::spec()
{
    static OpSpec const sSpec{"CausalConv1d",
        {
            {"x", false, {Dim::kB, Dim::kL, Dim::kE}},
            {"weight", false, {Dim::kG, Dim::kE, Dim::kK}},
            {"bias", false, {Dim::kG, Dim::kE}},
        },
        {"u", false, {Dim::kG, Dim::kB, Dim::kL, Dim::kE}}};
    return sSpec;
}

std::vector<FieldSpec> const& CausalConv1dPlugin::fields()
{
    static std::vector<FieldSpec> const sFields{
        {"directions", PluginFieldType::kINT32, 0},
        {"activation", PluginFieldType::kCHAR, 0},
    };
    return sFields;
}

CausalConv1dPlugin::CausalConv1dPlugin(FieldReader const& reader, Origin const& origin, char const* layer)
    : OpPlugin(spec(), origin, layer)
    , mDirections(reader.integers("directions"))
    , mActivation(reader.text("activation"))
{
    checkDirections(mDirections);
    if (mActivation != "silu" && mActivation != "none")
    {
        refuse("attribute 'activation' is '%.64s', expected 'silu' or 'none'", mActivation.c_str());
    }
}

std::unique_ptr<OpPlugin> CausalConv1dPlugin::copy() const
{
    return std::unique_ptr<OpPlugin>(new CausalConv1dPlugin(*this));
}

int32_t CausalConv1dPlugin::nbGroups() const noexcept
{
    return static_cast<int32_t>(mDirections.size());
}

std::vector<DimLimit> const& CausalConv1dPlugin::limits() const noexcept
{
    static std::vector<DimLimit> const sLimits{
        {Dim::kL, 1, std::numeric_limits<int32_t>::max()},
        {Dim::kE, 1, std::numeric_limits<int32_t>::max()},
        {Dim::kK, kMIN_CONV_WIDTH, kMAX_CONV_WIDTH},
    };
    return sLimits;
}

void CausalConv1dPlugin::checkAttributes(Symbols const& /* symbols */) const {}

void CausalConv1dPlugin::writeFields(FieldWriter& writer) const
{
    writer.add("directions", mDirections);
    writer.add("activation", mActivation);
}

std::string CausalConv1dPlugin::describeAttributes() const
{
    return "directions=" + join(mDirections) + ";activation=" + mActivation;
}

ConvShape CausalConv1dPlugin::shapeOf(Symbols const& symbols, DataType type) const
{
    for (Dim const dim : {Dim::kB, Dim::kL, Dim::kE, Dim::kK})
    {
        if (symbols[dim] == kUNKNOWN)
        {
            refuse("%s is not known", toString(dim));
        }
    }
    ConvShape shape;
    shape.batch = std::max<int64_t>(symbols[Dim::kB], 1); // a profile may start at an empty batch
    shape.length = symbols[Dim::kL];
    shape.channels = static_cast<int32_t>(symbols[Dim::kE]);
    shape.width = static_cast<int32_t>(symbols[Dim::kK]);
    shape.groups = nbGroups();
    std::copy(mDirections.begin(), mDirections.end(), shape.directions);
    shape.silu = mActivation == "silu";
    shape.type = toDType(type);
    char message[kMESSAGE_SIZE];
    if (char const* const problem = checkConvShape(shape, message, sizeof(message)))
    {
        refuse("%s", problem);
    }
    return shape;
}

std::vector<int32_t> CausalConv1dPlugin::tacticsFor(Symbols const& symbols, DataType type) const
{
    // One kernel: nothing to time, TensorRT's default tactic stands. The shape is still checked.
    static_cast<void>(shapeOf(symbols, type));
    return {};
}

bool CausalConv1dPlugin::isTactic(int32_t /* tactic */) const noexcept
{
    return false;
}

size_t CausalConv1dPlugin::workspaceFor(Symbols const& /* symbols */, DataType /* type */) const
{
    return 0;
}

void CausalConv1dPlugin::launch(Symbols const& symbols, DataType type, LaunchArguments const& arguments) const
{
    ConvShape const shape = shapeOf(symbols, type);
    ConvPointers pointers;
    pointers.x = arguments.inputs[kX];
    pointers.weight = arguments.inputs[kWEIGHT];
    pointers.bias = arguments.inputs[kBIAS];
    pointers.u = arguments.outputs[0];
    LaunchStatus const status = launchConv(shape, pointers, arguments.stream);
    if (!status.ok())
    {
        refuse("the launch failed at B = %lld, L = %lld, E = %d: %s", static_cast<long long>(shape.batch),
            static_cast<long long>(shape.length), shape.channels, textOf(status));
    }
}

} // namespace vimdeploy
