//! \file ops.h
//! The custom ops on a CPU: checked, converted, dealt to threads. ONNX Runtime's ops and the C entry points are thin
//! layers over this.
#pragma once

#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/signature.h"

#include <memory>
#include <new>
#include <vector>

namespace vimdeploy::cpu
{

//! What runs tasks side by side.
class Threads
{
public:
    virtual ~Threads() = default;

    //! Calls task(data, i) once for every i below `count`, in any order, and returns when all have returned.
    virtual Status run(int64_t count, void (*task)(void* data, int64_t i), void* data) noexcept = 0;

    //! How many run at once, as far as that is known: work is cut into as many pieces.
    [[nodiscard]] virtual int64_t count() const noexcept = 0;
};

//! One node of a graph: attributes, and parameters where they never change. Calls may run at the same time.
class Op
{
public:
    virtual ~Op() = default;
    Op(Op const&) = delete;
    Op& operator=(Op const&) = delete;

    [[nodiscard]] Signature const& signature() const noexcept
    {
        return mSignature;
    }

    //! \return whether input `i` is a parameter, which prepare() packs.
    [[nodiscard]] bool isParameter(size_t i) const noexcept
    {
        return (mParameters >> i & 1U) != 0U;
    }

    //! Packs the parameters once for all calls; of the other inputs only the first one's type is looked at.
    Status prepare(Tensor const* inputs) noexcept;

    //! Checks shapes, types and attributes. \param output receives the output's dimensions.
    Status check(Tensor const* inputs, size_t count, Sizes& sizes, std::vector<int64_t>& output) const;

    //! Computes the output of inputs that check() has passed.
    Status run(Tensor const* inputs, Sizes const& sizes, void* output, Threads& threads) const noexcept;

protected:
    Op(Signature const& signature, uint32_t parameters, Kernels const& kernels) noexcept
        : mSignature(signature)
        , mKernels(kernels)
        , mParameters(parameters)
    {
    }

    //! The inputs as float32, parameters left out where they are prepared.
    using Values = float const* [kMAX_INPUTS];

    [[nodiscard]] virtual Status checkAttributes(Sizes const& sizes) const noexcept = 0;
    [[nodiscard]] virtual bool pack(Values const& values, Sizes const& sizes, Buffer& packed) const noexcept = 0;
    virtual Status compute(Values const& values, float const* packed, Sizes const& sizes, float* output,
        Threads& threads) const noexcept = 0;

    Signature const& mSignature;
    Kernels const& mKernels;

private:
    Status asFloats(size_t i, Tensor const& tensor, int64_t elements, Buffer& buffer, float const*& values,
        Threads& threads) const noexcept;

    uint32_t mParameters; //!< a bit per input
    Buffer mPacked;
    bool mPrepared{false};
};

struct ConvAttributes
{
    std::vector<int64_t> directions;
    bool silu{true};
};

struct ScanAttributes
{
    std::vector<int64_t> directions;
    std::vector<int64_t> columnMajor;
    int64_t height{1};
    float scale{1.0F};
};

struct DeltaAttributes
{
    int64_t softplus{1};
    int64_t reverse{0};
};

std::unique_ptr<Op> makeConv(ConvAttributes attributes, Kernels const& kernels);
std::unique_ptr<Op> makeScan(bool gated, ScanAttributes attributes, Kernels const& kernels);
std::unique_ptr<Op> makeDelta(bool gated, DeltaAttributes attributes, Kernels const& kernels);

} // namespace vimdeploy::cpu
