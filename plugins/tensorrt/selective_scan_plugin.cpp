#include "selective_scan_plugin.h"

#include "attributes.h"
#include "logging.h"

#include <algorithm>
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
        inputs.push_back(gateSpec());
    }
    return inputs;
}

} // namespace

std::vector<FieldSpec> const& ProjectedScanPlugin::fields()
{
    static std::vector<FieldSpec> const sFields{
        {"directions", PluginFieldType::kINT32, 0},
        {"column_major", PluginFieldType::kINT32, 0},
        {"height", PluginFieldType::kINT32, 1},
        {"scale", PluginFieldType::kFLOAT32, 1},
    };
    return sFields;
}

ProjectedScanPlugin::ProjectedScanPlugin(
    OpSpec const& spec, bool isGated, FieldReader const& reader, Origin const& origin, char const* layer)
    : ScanPlugin(spec, isGated, origin, layer)
    , mDirections(reader.integers("directions"))
    , mColumnMajor(reader.integers("column_major"))
    , mHeight(reader.integer("height"))
    , mScale(reader.number("scale"))
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

int32_t ProjectedScanPlugin::nbGroups() const noexcept
{
    return static_cast<int32_t>(mDirections.size());
}

std::vector<DimLimit> const& ProjectedScanPlugin::limits() const noexcept
{
    static std::vector<DimLimit> const sLimits{
        {Dim::kL, 1, std::numeric_limits<int32_t>::max()},
        {Dim::kE, 1, std::numeric_limits<int32_t>::max()},
        {Dim::kN, 1, kMAX_STATES},
        {Dim::kR, 1, kMAX_RANK},
    };
    return sLimits;
}

void ProjectedScanPlugin::checkAttributes(Symbols const& symbols) const
{
    int64_t const length = symbols[Dim::kL];
    bool const isGrid = std::find(mColumnMajor.begin(), mColumnMajor.end(), 1) != mColumnMajor.end();
    if (isGrid && length != kUNKNOWN && length % mHeight != 0)
    {
        refuse("u has L = %lld tokens, which is no multiple of attribute 'height' = %d", static_cast<long long>(length),
            mHeight);
    }
}

void ProjectedScanPlugin::writeFields(FieldWriter& writer) const
{
    writer.add("directions", mDirections);
    writer.add("column_major", mColumnMajor);
    writer.add("height", mHeight);
    writer.add("scale", mScale);
}

std::string ProjectedScanPlugin::describeAttributes() const
{
    char scale[32];
    // %a is exact: two scales that differ never share a timing.
    std::snprintf(scale, sizeof(scale), "%a", static_cast<double>(mScale));
    return "directions=" + join(mDirections) + ";column_major=" + join(mColumnMajor)
        + ";height=" + std::to_string(mHeight) + ";scale=" + scale;
}

void ProjectedScanPlugin::describe(Symbols const& symbols, ScanShape& shape) const
{
    shape.rank = static_cast<int32_t>(symbols[Dim::kR]);
    shape.groups = nbGroups();
    shape.sharedU = symbols.isShared(kU);
    shape.sharedXDbl = symbols.isShared(kX_DBL);
    std::copy(mDirections.begin(), mDirections.end(), shape.directions);
    std::copy(mColumnMajor.begin(), mColumnMajor.end(), shape.columnMajor);
    shape.height = mHeight;
    shape.scale = mScale;
}

void ProjectedScanPlugin::point(void const* const* inputs, ScanPointers& pointers) const
{
    pointers.u = inputs[kU];
    pointers.xDbl = inputs[kX_DBL];
    pointers.A = static_cast<float const*>(inputs[kA]);
    pointers.D = static_cast<float const*>(inputs[kD]);
    pointers.dtWeight = inputs[kDT_WEIGHT];
    pointers.dtBias = static_cast<float const*>(inputs[kDT_BIAS]);
    pointers.z = isGated() ? inputs[kZ] : nullptr;
}

std::vector<Dim> const& ProjectedScanPlugin::letters() const noexcept
{
    static std::vector<Dim> const sLetters{Dim::kB, Dim::kL, Dim::kE, Dim::kN, Dim::kR};
    return sLetters;
}

OpSpec const& SelectiveScanPlugin::spec()
{
    static OpSpec const sSpec{"SelectiveScan", inputsOf(true), scanOutputSpec(true)};
    return sSpec;
}

SelectiveScanPlugin::SelectiveScanPlugin(FieldReader const& reader, Origin const& origin, char const* layer)
    : ProjectedScanPlugin(spec(), true, reader, origin, layer)
{
}

std::unique_ptr<OpPlugin> SelectiveScanPlugin::copy() const
{
    return std::unique_ptr<OpPlugin>(new SelectiveScanPlugin(*this));
}

OpSpec const& SelectiveScanNoGatePlugin::spec()
{
    static OpSpec const sSpec{"SelectiveScanNoGate", inputsOf(false), scanOutputSpec(false)};
    return sSpec;
}

SelectiveScanNoGatePlugin::SelectiveScanNoGatePlugin(FieldReader const& reader, Origin const& origin, char const* layer)
    : ProjectedScanPlugin(spec(), false, reader, origin, layer)
{
}

std::unique_ptr<OpPlugin> SelectiveScanNoGatePlugin::copy() const
{
    return std::unique_ptr<OpPlugin>(new SelectiveScanNoGatePlugin(*this));
}

} // namespace vimdeploy
