//! \file descriptors.h
//! The tensors of an op as a table, and the one checker that reads it.
//!
//! A table row says "dt_weight is T and has the dimensions (G, E, R)". Checking a set of descriptors means giving each
//! letter one value: the first tensor that has it decides, every later one must agree, and a disagreement names both
//! tensors, the axis and the two numbers. The same walk serves concrete shapes (configure, shape change, enqueue) and
//! symbolic ones (output shapes), where what is not yet known is skipped.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace vimdeploy
{

//! The letters of the op contract.
enum class Dim : uint8_t
{
    kB,      //!< batch
    kL,      //!< tokens
    kE,      //!< inner channels
    kN,      //!< states
    kR,      //!< dt_rank
    kK,      //!< conv width
    kG,      //!< groups
    kSHARED, //!< G, or 1 for a tensor that all groups share
    kX,      //!< R + 2 N, the columns that x_proj emits
    kCOUNT
};

//! The letter(s) of \p dim as messages write them.
char const* toString(Dim dim) noexcept;

//! TensorRT's name of a data type, as messages write it.
char const* toString(nvinfer1::DataType type) noexcept;

//! One tensor of an op.
struct TensorSpec
{
    char const* name;
    bool isFloat32; //!< float32 whatever T is
    std::vector<Dim> dims;
};

//! The tensors of an op.
struct OpSpec
{
    char const* name;
    std::vector<TensorSpec> inputs;
    TensorSpec output;
};

//! Inclusive limits of a letter and who sets them.
struct DimLimit
{
    Dim dim;
    int64_t low;
    int64_t high;
};

//! A value that is not known yet (a wildcard, a symbolic dimension).
inline constexpr int64_t kUNKNOWN{-1};

//! The values of the letters, bound tensor by tensor.
class Symbols
{
public:
    //! \param nbGroups the number of groups that the attributes give, bound first; kUNKNOWN where the tensors tell.
    explicit Symbols(int64_t nbGroups) noexcept;

    //! Binds every dimension of one tensor.
    //! \param dims the extents; kUNKNOWN ones are skipped.
    //! \throws PluginError naming \p spec, the axis and the number if it contradicts an earlier tensor.
    void bind(TensorSpec const& spec, int32_t nbDims, int64_t const* dims);

    //! \throws PluginError if a letter is outside \p limits, or if the tensors are too large to be addressed.
    void checkLimits(std::vector<DimLimit> const& limits) const;

    //! The value of \p dim, or kUNKNOWN.
    int64_t operator[](Dim dim) const noexcept
    {
        return mValues[static_cast<size_t>(dim)];
    }

    //! Whether input \p index has one slice for all groups (its first dimension is "G or 1", and is 1).
    bool isShared(size_t index) const noexcept
    {
        return ((mShared >> index) & 1U) != 0;
    }

    //! Binds all inputs and then the output of \p spec from TensorRT's descriptors.
    void bindAll(OpSpec const& spec, nvinfer1::Dims const* const* dims, size_t count);

private:
    void set(TensorSpec const& spec, size_t axis, Dim dim, int64_t value);

    std::array<int64_t, static_cast<size_t>(Dim::kCOUNT)> mValues{};
    std::array<char const*, static_cast<size_t>(Dim::kCOUNT)> mOrigins{};
    uint32_t mShared{0};
    uint32_t mTensor{0};
};

//! \throws PluginError unless the call has the op's number of inputs and outputs and no null array.
void checkCounts(OpSpec const& spec, void const* inputs, int32_t nbInputs, void const* outputs, int32_t nbOutputs);

//! \throws PluginError naming the first input whose type is not what \p spec asks for; T is the type of the first.
void checkTypes(OpSpec const& spec, nvinfer1::DataType const* types);

//! Whether \p type is one of float32, float16 and bfloat16.
bool isSupported(nvinfer1::DataType type) noexcept;

//! Whether the tensor at \p pos (inputs, then the output) may have its type and format, given those before it.
bool isSupportedAt(OpSpec const& spec, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t pos) noexcept;

} // namespace vimdeploy
