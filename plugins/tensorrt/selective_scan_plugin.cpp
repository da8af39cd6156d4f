#include "selective_scan_plugin.h"

#include "attributes.h"
#include "cuda_runtime.h"
#include "logging.h"

#include <algorithm>
#include <array>
#include <cstdio>
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
    kU,
    kX_DBL,
    kA,
    kD,
    kDT_WEIGHT,
    kDT_BIAS,
    kZ
};

std::vector<TensorSpec> inputsOf(bool isGated)
{
    std::vector<TensorSpec> inputs{
        {"u", false, {Dim::kSHARED, Dim::kB, Dim::kL, Dim::kE}},
        {"x_dbl", false, {Dim::kSHARED, Dim::kB, Dim::kL, Dim::kX}},
        {"A", true, {Dim::kG, Dim::kE, Dim::kN}},
        {"D", true, {Dim::kG, Dim::kE}},
        {"dt_weight", false, {Dim::kG, Dim::kE, Dim::kR}},
        {"dt_bias", true, {Dim::kG, Dim::kE}},
    };
    if (isGated)
    {
        inputs.push_back({"z", false, {Dim::kB, Dim::kL, Dim::kE}});
    }
    return inputs;
}

TensorSpec outputOf(bool isGated)
{
    return {"y", !isGated, {Dim::kB, Dim::kL, Dim::kE}};
}

template <typename T>
T const* pointerTo(void const* const* inputs, Input index)
{
    return static_cast<T const*>(inputs[index]);
}

} // namespace

std::vector<FieldSpec> const& ScanPlugin::fields()
{
    static std::vector<FieldSpec> const sFields{
        {"directions", PluginFieldType::kINT32, 0},
        {"column_major", PluginFieldType::kINT32, 0},
        {"height", PluginFieldType::kINT32, 1},
        {"scale", PluginFieldType::kFLOAT32, 1},
    };
    return sFields;
}

ScanPlugin::ScanPlugin(
    OpSpec const& spec, bool isGated, FieldReader const& reader, Origin const& origin, char const* layer)
    : OpPlugin(spec, origin, layer)
    , mDirections(reader.integers("directions"))
    , mColumnMajor(reader.integers("column_major"))
    , mHeight(reader.integer("height"))
    , mScale(reader.number("scale"))
    , mIsGated(isGated)
{
    checkDirections(mDirections);
    if (mColumnMajor.size() != mDirections.size())
    {
        refuse("attribute 'column_major' has %zu values, but 'directions' has %zu", mColumnMajor.size(),
            mDirections.size());
    }
    for (size_t i = 0; i < mColumnMajor.size(); ++i)
    {
        if (mColumnMajor[i] != 0 && mColumnMajor[i] != 1)
        {
            refuse("attribute 'column_major' has %d for group %zu, expected 0 or 1", mColumnMajor[i], i);
        }
        if (mColumnMajor[i] == 1 && mHeight < 1)
        {
            refuse(
                "attribute 'height' is %d, but group %zu is column-major and needs the height of its grid", mHeight, i);
        }
    }
}

int32_t ScanPlugin::nbGroups() const noexcept
{
    return static_cast<int32_t>(mDirections.size());
}

std::vector<DimLimit> const& ScanPlugin::limits() const noexcept
{
    static std::vector<DimLimit> const sLimits{
        {Dim::kL, 1, std::numeric_limits<int32_t>::max()},
        {Dim::kE, 1, std::numeric_limits<int32_t>::max()},
        {Dim::kN, 1, kMAX_STATES},
        {Dim::kR, 1, kMAX_RANK},
    };
    return sLimits;
}

void ScanPlugin::checkAttributes(Symbols const& symbols) const
{
    int64_t const length = symbols[Dim::kL];
    bool const isGrid = std::find(mColumnMajor.begin(), mColumnMajor.end(), 1) != mColumnMajor.end();
    if (isGrid && length != kUNKNOWN && length % mHeight != 0)
    {
        refuse("u has L = %lld tokens, which is no multiple of attribute 'height' = %d", static_cast<long long>(length),
            mHeight);
    }
}

void ScanPlugin::writeFields(FieldWriter& writer) const
{
    writer.add("directions", mDirections);
    writer.add("column_major", mColumnMajor);
    writer.add("height", mHeight);
    writer.add("scale", mScale);
}

std::string ScanPlugin::describeAttributes() const
{
    char scale[32];
    // %a is exact: two scales that differ never share a timing.
    std::snprintf(scale, sizeof(scale), "%a", static_cast<double>(mScale));
    return "directions=" + join(mDirections) + ";column_major=" + join(mColumnMajor)
        + ";height=" + std::to_string(mHeight) + ";scale=" + scale;
}

ScanShape ScanPlugin::shapeOf(Symbols const& symbols, DataType type) const
{
    for (Dim const dim : {Dim::kB, Dim::kL, Dim::kE, Dim::kN, Dim::kR})
    {
        if (symbols[dim] == kUNKNOWN)
        {
            refuse("%s is not known", toString(dim));
        }
    }
    ScanShape shape;
    // A profile may start at an empty batch; plans and workspace are those of one image.
    shape.batch = std::max<int64_t>(symbols[Dim::kB], 1);
    shape.length = symbols[Dim::kL];
    shape.channels = static_cast<int32_t>(symbols[Dim::kE]);
    shape.states = static_cast<int32_t>(symbols[Dim::kN]);
    shape.rank = static_cast<int32_t>(symbols[Dim::kR]);
    shape.groups = nbGroups();
    shape.sharedU = symbols.isShared(kU);
    shape.sharedXDbl = symbols.isShared(kX_DBL);
    shape.gated = mIsGated;
    std::copy(mDirections.begin(), mDirections.end(), shape.directions);
    std::copy(mColumnMajor.begin(), mColumnMajor.end(), shape.columnMajor);
    shape.height = mHeight;
    shape.scale = mScale;
    shape.type = toDType(type);
    char message[kMESSAGE_SIZE];
    if (char const* const problem = checkScanShape(shape, message, sizeof(message)))
    {
        refuse("%s", problem);
    }
    return shape;
}

std::vector<int32_t> ScanPlugin::tacticsFor(Symbols const& symbols, DataType type) const
{
    ScanShape const shape = shapeOf(symbols, type);
    ScanDevice const device{origin().builtFor(), sharedPerSm()};
    std::array<ScanVariant, kSCAN_VARIANT_COUNT> variants{};
    int32_t const count = scanVariants(shape, variants.data());
    std::vector<int32_t> tactics;
    for (int32_t i = 0; i < count; ++i)
    {
        ScanVariant const variant = variants[static_cast<size_t>(i)];
        if (planScanVariant(shape, variant, device).variant != ScanVariant::kNONE)
        {
            tactics.push_back(static_cast<int32_t>(variant));
        }
    }
    return tactics;
}

bool ScanPlugin::isTactic(int32_t tactic) const noexcept
{
    return tactic >= 1 && tactic <= kSCAN_VARIANT_COUNT;
}

size_t ScanPlugin::workspaceFor(Symbols const& symbols, DataType type) const
{
    // TensorRT asks before it sets a tactic, and a smaller shape may choose another variant than the largest one.
    ScanShape const shape = shapeOf(symbols, type);
    size_t bytes{0};
    for (int32_t variant = 1; variant <= kSCAN_VARIANT_COUNT; ++variant)
    {
        bytes = std::max(bytes, scanWorkspaceSize(shape, static_cast<ScanVariant>(variant), origin().builtFor()));
    }
    return bytes;
}

void ScanPlugin::launch(Symbols const& symbols, DataType type, LaunchArguments const& arguments) const
{
    ScanShape const shape = shapeOf(symbols, type);
    ScanDevice const device{origin().multiprocessors(), sharedPerSm()};
    ScanPlan plan;
    if (arguments.tactic != 0)
    {
        plan = planScanVariant(shape, static_cast<ScanVariant>(arguments.tactic), device);
    }
    if (plan.variant == ScanVariant::kNONE)
    {
        plan = planScan(shape, device);
    }
    void const* const* const inputs = arguments.inputs;
    ScanPointers pointers;
    pointers.u = inputs[kU];
    pointers.xDbl = inputs[kX_DBL];
    pointers.A = pointerTo<float>(inputs, kA);
    pointers.D = pointerTo<float>(inputs, kD);
    pointers.dtWeight = inputs[kDT_WEIGHT];
    pointers.dtBias = pointerTo<float>(inputs, kDT_BIAS);
    pointers.z = mIsGated ? inputs[kZ] : nullptr;
    pointers.y = arguments.outputs[0];
    // TensorRT does not say how much it gave, only that it is what getWorkspaceSize() asked for.
    Workspace const workspace{arguments.workspace, scanWorkspaceSize(shape, plan.variant, origin().builtFor())};
    LaunchStatus const status = launchScan(shape, plan, pointers, workspace, arguments.stream);
    if (!status.ok())
    {
        refuse("the launch of variant %d failed at B = %lld, L = %lld, E = %d: %s", static_cast<int32_t>(plan.variant),
            static_cast<long long>(shape.batch), static_cast<long long>(shape.length), shape.channels, textOf(status));
    }
}

OpSpec const& SelectiveScanPlugin::spec()
{
    static OpSpec const sSpec{"SelectiveScan", inputsOf(true), outputOf(true)};
    return sSpec;
}

SelectiveScanPlugin::SelectiveScanPlugin(FieldReader const& reader, Origin const& origin, char const* layer)
    : ScanPlugin(spec(), true, reader, origin, layer)
{
}

std::unique_ptr<OpPlugin> SelectiveScanPlugin::copy() const
{
    return std::unique_ptr<OpPlugin>(new SelectiveScanPlugin(*this));
}

OpSpec const& SelectiveScanNoGatePlugin::spec()
{
    static OpSpec const sSpec{"SelectiveScanNoGate", inputsOf(false), outputOf(false)};
    return sSpec;
}

SelectiveScanNoGatePlugin::SelectiveScanNoGatePlugin(FieldReader const& reader, Origin const& origin, char const* layer)
    : ScanPlugin(spec(), false, reader, origin, layer)
{
}

std::unique_ptr<OpPlugin> SelectiveScanNoGatePlugin::copy() const
{
    return std::unique_ptr<OpPlugin>(new SelectiveScanNoGatePlugin(*this));
}

} // namespace vimdeploy
