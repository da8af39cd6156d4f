#include "cpu/ops.h"
#include "cpu/parallel.h"

namespace vimdeploy::cpu
{

namespace
{

int64_t elementsOf(Tensor const& tensor) noexcept
{
    int64_t elements = 1;
    for (int64_t axis = 0; axis < tensor.rank; ++axis)
    {
        elements *= tensor.dims[axis];
    }
    return elements;
}

constexpr int64_t kCONVERTED_AT_ONCE = 1 << 16;

//! Calls convert(from, to, count) piece by piece.
template <typename FROM, typename TO>
Status convert(void (*function)(FROM const*, TO*, int64_t), FROM const* from, TO* to, int64_t count, Threads& threads)
{
    return parallel(threads, (count + kCONVERTED_AT_ONCE - 1) / kCONVERTED_AT_ONCE,
        [=](int64_t i)
        {
            int64_t const start = i * kCONVERTED_AT_ONCE;
            int64_t const left = count - start;
            function(from + start, to + start, left < kCONVERTED_AT_ONCE ? left : kCONVERTED_AT_ONCE);
        });
}

} // namespace

Status Op::check(Tensor const* inputs, size_t count, Sizes& sizes, std::vector<int64_t>& output) const
{
    if (Status status = sizes.bind(mSignature, inputs, count); status.failed())
    {
        return status;
    }
    if (Status status = checkAttributes(sizes); status.failed())
    {
        return status;
    }
    output.clear();
    int64_t bytes = 2 * static_cast<int64_t>(sizeof(float));
    for (char const* symbol = mSignature.outputShape; *symbol != '\0'; ++symbol)
    {
        if (*symbol != ',')
        {
            output.push_back(sizes[*symbol]);
            if (!multiply(bytes, output.back() == 0 ? 1 : output.back()))
            {
                return Status::error("%s: its output is too large to address", mSignature.op);
            }
        }
    }
    return {};
}

Status Op::prepare(Tensor const* inputs) noexcept
{
    InThisThread here;
    Buffer converted[kMAX_INPUTS];
    Values values = {};
    Sizes sizes;
    if (Status status = sizes.bind(mSignature, inputs, mSignature.inputCount, mParameters); status.failed())
    {
        return status;
    }
    for (size_t i = 0; i < mSignature.inputCount; ++i)
    {
        if (isParameter(i))
        {
            Status const status = asFloats(i, inputs[i], elementsOf(inputs[i]), converted[i], values[i], here);
            if (status.failed())
            {
                return status;
            }
        }
    }
    if (!pack(values, sizes, mPacked))
    {
        return Status::error("%s: no memory for its parameters", mSignature.op);
    }
    mPrepared = true;
    return {};
}

Status Op::asFloats(size_t i, Tensor const& tensor, int64_t elements, Buffer& buffer, float const*& values,
    Threads& threads) const noexcept
{
    if (tensor.element == Element::kFLOAT32)
    {
        values = static_cast<float const*>(tensor.data);
        return {};
    }
    if (!buffer.take(elements))
    {
        return Status::error("%s: no memory for %s as float32", mSignature.op, mSignature.inputs[i].name);
    }
    values = buffer.data();
    auto const function = tensor.element == Element::kFLOAT16 ? mKernels.fromHalf : mKernels.fromBrain;
    return convert(function, static_cast<uint16_t const*>(tensor.data), buffer.data(), elements, threads);
}

Status Op::run(Tensor const* inputs, Sizes const& sizes, void* output, Threads& threads) const noexcept
{
    int64_t const elements = sizes['B'] * sizes['L'] * sizes['E'] * (&mSignature == &kCAUSAL_CONV1D ? sizes['G'] : 1);
    if (elements == 0)
    {
        return {};
    }
    Buffer converted[kMAX_INPUTS];
    Values values = {};
    for (size_t i = 0; i < mSignature.inputCount; ++i)
    {
        if (mPrepared && isParameter(i))
        {
            continue;
        }
        Status const status = asFloats(i, inputs[i], elementsOf(inputs[i]), converted[i], values[i], threads);
        if (status.failed())
        {
            return status;
        }
    }
    Buffer packed;
    if (!mPrepared && !pack(values, sizes, packed))
    {
        return Status::error("%s: no memory for its parameters", mSignature.op);
    }
    float const* const parameters = mPrepared ? mPacked.data() : packed.data();
    Element const element = mSignature.outputIsT ? inputs[0].element : Element::kFLOAT32;
    if (element == Element::kFLOAT32)
    {
        return compute(values, parameters, sizes, static_cast<float*>(output), threads);
    }
    Buffer result;
    if (!result.take(elements))
    {
        return Status::error("%s: no memory for its output as float32", mSignature.op);
    }
    if (Status status = compute(values, parameters, sizes, result.data(), threads); status.failed())
    {
        return status;
    }
    auto const function = element == Element::kFLOAT16 ? mKernels.toHalf : mKernels.toBrain;
    return convert(
        function, static_cast<float const*>(result.data()), static_cast<uint16_t*>(output), elements, threads);
}

} // namespace vimdeploy::cpu
