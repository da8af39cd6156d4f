#include "selective_scan_delta_plugin.h"

#include "logging.h"

#include <limits>

namespace vimdeploy
{
namespace
{

using nvinfer1::PluginFieldType;

//! Positions of the inputs in the node.
enum Input : size_t
{
    kU,
    kDELTA,
    kA,
    kB,
    kC,
    kD,
    kDELTA_BIAS,
    kZ
};

std::vector<TensorSpec> inputsOf(bool isGated)
{
    std::vector<TensorSpec> inputs{
        {"u", false, {Dim::kB, Dim::kL, Dim::kE}},
        {"delta", false, {Dim::kB, Dim::kL, Dim::kE}},
        {"A", true, {Dim::kE, Dim::kN}},
        {"B", false, {Dim::kB, Dim::kL, Dim::kG, Dim::kN}},
        {"C", false, {Dim::kB, Dim::kL, Dim::kG, Dim::kN}},
        {"D", true, {Dim::kE}},
        {"delta_bias", true, {Dim::kE}},
    };
    if (isGated)
    {
        inputs.push_back(gateSpec());
    }
    return inputs;
}

int32_t flag(FieldReader const& reader, char const* name)
{
    int32_t const value = reader.integer(name);
    if (value != 0 && value != 1)
    {
        refuse("attribute '%s' is %d, expected 0 or 1", name, value);
    }
    return value;
}

} // namespace

std::vector<FieldSpec> const& DeltaScanPlugin::fields()
{
    static std::vector<FieldSpec> const sFields{
        {"delta_softplus", PluginFieldType::kINT32, 1},
        {"reverse", PluginFieldType::kINT32, 1},
    };
    return sFields;
}

DeltaScanPlugin::DeltaScanPlugin(
    OpSpec const& spec, bool isGated, FieldReader const& reader, Origin const& origin, char const* layer)
    : ScanPlugin(spec, isGated, origin, layer)
    , mDeltaSoftplus(flag(reader, "delta_softplus"))
    , mReverse(flag(reader, "reverse"))
{
}

int32_t DeltaScanPlugin::nbGroups() const noexcept
{
    return kUNKNOWN; // B and C tell
}

std::vector<DimLimit> const& DeltaScanPlugin::limits() const noexcept
{
    static std::vector<DimLimit> const sLimits{
        {Dim::kL, 1, std::numeric_limits<int32_t>::max()},
        {Dim::kE, 1, std::numeric_limits<int32_t>::max()},
        {Dim::kN, 1, kMAX_STATES},
        {Dim::kG, 1, std::numeric_limits<int32_t>::max()},
    };
    return sLimits;
}

void DeltaScanPlugin::checkAttributes(Symbols const& symbols) const
{
    int64_t const channels = symbols[Dim::kE];
    int64_t const groups = symbols[Dim::kG];
    if (channels != kUNKNOWN && groups != kUNKNOWN && channels % groups != 0)
    {
        refuse("B has G = %lld groups, which do not divide E = %lld channels", static_cast<long long>(groups),
            static_cast<long long>(channels));
    }
}

void DeltaScanPlugin::writeFields(FieldWriter& writer) const
{
    writer.add("delta_softplus", mDeltaSoftplus);
    writer.add("reverse", mReverse);
}

std::string DeltaScanPlugin::describeAttributes() const
{
    return "delta_softplus=" + std::to_string(mDeltaSoftplus) + ";reverse=" + std::to_string(mReverse);
}

void DeltaScanPlugin::describe(Symbols const& symbols, ScanShape& shape) const
{
    shape.rank = 0;
    shape.groups = 1;
    shape.directions[0] = mReverse != 0 ? -1 : 1;
    shape.givenDelta = true;
    shape.deltaSoftplus = mDeltaSoftplus != 0;
    shape.channelGroups = static_cast<int32_t>(symbols[Dim::kG]);
}

void DeltaScanPlugin::point(void const* const* inputs, ScanPointers& pointers) const
{
    pointers.u = inputs[kU];
    pointers.delta = inputs[kDELTA];
    pointers.A = static_cast<float const*>(inputs[kA]);
    pointers.B = inputs[kB];
    pointers.C = inputs[kC];
    pointers.D = static_cast<float const*>(inputs[kD]);
    pointers.dtBias = static_cast<float const*>(inputs[kDELTA_BIAS]);
    pointers.z = isGated() ? inputs[kZ] : nullptr;
}

std::vector<Dim> const& DeltaScanPlugin::letters() const noexcept
{
    static std::vector<Dim> const sLetters{Dim::kB, Dim::kL, Dim::kE, Dim::kN, Dim::kG};
    return sLetters;
}

OpSpec const& SelectiveScanDeltaPlugin::spec()
{
    static OpSpec const sSpec{"SelectiveScanDelta", inputsOf(true), scanOutputSpec(true)};
    return sSpec;
}

SelectiveScanDeltaPlugin::SelectiveScanDeltaPlugin(FieldReader const& reader, Origin const& origin, char const* layer)
    : DeltaScanPlugin(spec(), true, reader, origin, layer)
{
}

std::unique_ptr<OpPlugin> SelectiveScanDeltaPlugin::copy() const
{
    return std::unique_ptr<OpPlugin>(new SelectiveScanDeltaPlugin(*this));
}

OpSpec const& SelectiveScanDeltaNoGatePlugin::spec()
{
    static OpSpec const sSpec{"SelectiveScanDeltaNoGate", inputsOf(false), scanOutputSpec(false)};
    return sSpec;
}

SelectiveScanDeltaNoGatePlugin::SelectiveScanDeltaNoGatePlugin(
    FieldReader const& reader, Origin const& origin, char const* layer)
    : DeltaScanPlugin(spec(), false, reader, origin, layer)
{
}

std::unique_ptr<OpPlugin> SelectiveScanDeltaNoGatePlugin::copy() const
{
    return std::unique_ptr<OpPlugin>(new SelectiveScanDeltaNoGatePlugin(*this));
}

} // namespace vimdeploy
