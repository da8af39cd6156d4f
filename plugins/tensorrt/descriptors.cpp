#include "descriptors.h"

#include "logging.h"

#include <limits>

namespace vimdeploy
{
namespace
{

using nvinfer1::DataType;

//! Elements of the largest tensor. Far above any memory; it only keeps the size arithmetic from overflowing.
constexpr int64_t kMAX_ELEMENTS{int64_t{1} << 48};

constexpr size_t indexOf(Dim dim)
{
    return static_cast<size_t>(dim);
}

} // namespace

char const* toString(Dim dim) noexcept
{
    switch (dim)
    {
    case Dim::kB: return "B";
    case Dim::kL: return "L";
    case Dim::kE: return "E";
    case Dim::kN: return "N";
    case Dim::kR: return "R";
    case Dim::kK: return "K";
    case Dim::kG: return "G";
    case Dim::kSHARED: return "G or 1";
    case Dim::kX: return "R + 2N";
    case Dim::kCOUNT: break;
    }
    return "?";
}

char const* toString(DataType type) noexcept
{
    switch (type)
    {
    case DataType::kFLOAT: return "FLOAT";
    case DataType::kHALF: return "HALF";
    case DataType::kBF16: return "BF16";
    case DataType::kINT8: return "INT8";
    case DataType::kINT32: return "INT32";
    case DataType::kINT64: return "INT64";
    case DataType::kBOOL: return "BOOL";
    case DataType::kUINT8: return "UINT8";
    case DataType::kFP8: return "FP8";
    default: return "another type";
    }
}

Symbols::Symbols(int64_t nbGroups) noexcept
{
    mValues.fill(kUNKNOWN);
    mOrigins.fill("");
    mValues[indexOf(Dim::kG)] = nbGroups;
    mOrigins[indexOf(Dim::kG)] = "attribute 'directions'"; // where the tensors do not tell
}

void Symbols::set(TensorSpec const& spec, size_t axis, Dim dim, int64_t value)
{
    int64_t& known = mValues[indexOf(dim)];
    if (known == kUNKNOWN)
    {
        known = value;
        mOrigins[indexOf(dim)] = spec.name;
        return;
    }
    if (known != value)
    {
        refuse("%s has %s = %lld (axis %zu), but %s has %lld", spec.name, toString(dim), static_cast<long long>(value),
            axis, mOrigins[indexOf(dim)], static_cast<long long>(known));
    }
}

void Symbols::bind(TensorSpec const& spec, int32_t nbDims, int64_t const* dims)
{
    uint32_t const tensor = mTensor++;
    if (nbDims != static_cast<int32_t>(spec.dims.size()))
    {
        refuse("%s has rank %d, expected %zu", spec.name, nbDims, spec.dims.size());
    }
    for (size_t axis = 0; axis < spec.dims.size(); ++axis)
    {
        int64_t const value = dims[axis];
        Dim const dim = spec.dims[axis];
        if (value == kUNKNOWN)
        {
            continue;
        }
        if (value < 0 || value > std::numeric_limits<int32_t>::max())
        {
            refuse("%s has the extent %lld on axis %zu", spec.name, static_cast<long long>(value), axis);
        }
        if (dim == Dim::kSHARED)
        {
            if (value != 1)
            {
                set(spec, axis, Dim::kG, value);
            }
            else if ((*this)[Dim::kG] != 1)
            {
                mShared |= 1U << tensor;
            }
            continue;
        }
        set(spec, axis, dim, value);
    }
}

void Symbols::bindAll(OpSpec const& spec, nvinfer1::Dims const* const* dims, size_t count)
{
    for (size_t i = 0; i < count; ++i)
    {
        TensorSpec const& tensor = i < spec.inputs.size() ? spec.inputs[i] : spec.output;
        bind(tensor, dims[i]->nbDims, dims[i]->d);
    }
}

void Symbols::checkLimits(std::vector<DimLimit> const& limits) const
{
    for (DimLimit const& limit : limits)
    {
        int64_t const value = (*this)[limit.dim];
        if (value != kUNKNOWN && (value < limit.low || value > limit.high))
        {
            refuse("%s has %s = %lld, this plugin serves %lld to %lld", mOrigins[indexOf(limit.dim)],
                toString(limit.dim), static_cast<long long>(value), static_cast<long long>(limit.low),
                static_cast<long long>(limit.high));
        }
    }
    int64_t const rank = (*this)[Dim::kR];
    int64_t const states = (*this)[Dim::kN];
    int64_t const columns = (*this)[Dim::kX];
    if (rank != kUNKNOWN && states != kUNKNOWN && columns != kUNKNOWN && columns != rank + 2 * states)
    {
        refuse("%s has %lld columns, expected R + 2N = %lld + 2 * %lld = %lld", mOrigins[indexOf(Dim::kX)],
            static_cast<long long>(columns), static_cast<long long>(rank), static_cast<long long>(states),
            static_cast<long long>(rank + 2 * states));
    }
    int64_t elements{1};
    for (Dim const dim : {Dim::kG, Dim::kB, Dim::kL, Dim::kE, Dim::kN})
    {
        int64_t const value = (*this)[dim];
        // Each factor is below 2^31 and the product so far at most 2^48: no overflow before the test... by parts.
        if (value > 0 && elements > kMAX_ELEMENTS / value)
        {
            refuse("the tensors are too large: G * B * L * E * N exceeds 2^48 (B = %lld, L = %lld, E = %lld)",
                static_cast<long long>((*this)[Dim::kB]), static_cast<long long>((*this)[Dim::kL]),
                static_cast<long long>((*this)[Dim::kE]));
        }
        elements *= value > 0 ? value : 1;
    }
}

void checkCounts(OpSpec const& spec, void const* inputs, int32_t nbInputs, void const* outputs, int32_t nbOutputs)
{
    if (nbInputs != static_cast<int32_t>(spec.inputs.size()) || nbOutputs != 1)
    {
        refuse("%d inputs and %d outputs, expected %zu and 1", nbInputs, nbOutputs, spec.inputs.size());
    }
    if (inputs == nullptr || outputs == nullptr)
    {
        refuse("a descriptor array is null");
    }
}

bool isSupported(DataType type) noexcept
{
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

void checkTypes(OpSpec const& spec, DataType const* types)
{
    if (!isSupported(types[0]))
    {
        refuse("%s is %s, expected FLOAT, HALF or BF16", spec.inputs[0].name, toString(types[0]));
    }
    for (size_t i = 0; i < spec.inputs.size(); ++i)
    {
        DataType const wanted = spec.inputs[i].isFloat32 ? DataType::kFLOAT : types[0];
        if (types[i] != wanted)
        {
            refuse("%s is %s, expected %s%s%s", spec.inputs[i].name, toString(types[i]), toString(wanted),
                spec.inputs[i].isFloat32 ? " always" : " like ", spec.inputs[i].isFloat32 ? "" : spec.inputs[0].name);
        }
    }
}

bool isSupportedAt(OpSpec const& spec, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t pos) noexcept
{
    size_t const index = static_cast<size_t>(pos);
    TensorSpec const& tensor = index < spec.inputs.size() ? spec.inputs[index] : spec.output;
    nvinfer1::PluginTensorDesc const& desc = inOut[index].desc;
    if (desc.format != nvinfer1::TensorFormat::kLINEAR)
    {
        return false;
    }
    if (tensor.isFloat32)
    {
        return desc.type == DataType::kFLOAT;
    }
    // The first input chooses T; every other tensor of type T follows it.
    return index == 0 ? isSupported(desc.type) : desc.type == inOut[0].desc.type;
}

} // namespace vimdeploy
