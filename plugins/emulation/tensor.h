//! \file tensor.h
//! The tensors of the tests: of the three element types, in memory whose ends are watched.
#pragma once

#include "kernels/common/types.h"
#include "reference.h"

#include <cstdlib>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <memory>

namespace vimdeploy
{
namespace testing
{

//! A tensor in a heap block of exactly its size, so that AddressSanitizer guards both ends of it.
class Tensor
{
public:
    Tensor(DType type, std::size_t count, bool misaligned)
        : mType(type)
        , mCount(count)
        , mOffset(misaligned ? sizeOf(type) : 0)
        , mBytes(static_cast<unsigned char*>(std::malloc(count * sizeOf(type) + mOffset)), &std::free)
    {
        std::memset(mBytes.get(), 0xff, count * sizeOf(type) + mOffset); // NaN in every type
    }

    void* data()
    {
        return mBytes.get() + mOffset;
    }

    void set(std::size_t index, double value)
    {
        unsigned char* at = static_cast<unsigned char*>(data()) + index * sizeOf(mType);
        auto const single = static_cast<float>(value);
        if (mType == DType::kFLOAT32)
        {
            std::memcpy(at, &single, 4);
        }
        else if (mType == DType::kFLOAT16)
        {
            __half const half = __float2half_rn(single);
            std::memcpy(at, &half, 2);
        }
        else
        {
            __nv_bfloat16 const brain = __float2bfloat16_rn(single);
            std::memcpy(at, &brain, 2);
        }
    }

    double get(std::size_t index)
    {
        unsigned char const* at = static_cast<unsigned char const*>(data()) + index * sizeOf(mType);
        if (mType == DType::kFLOAT32)
        {
            float single;
            std::memcpy(&single, at, 4);
            return single;
        }
        if (mType == DType::kFLOAT16)
        {
            __half half;
            std::memcpy(&half, at, 2);
            return __half2float(half);
        }
        __nv_bfloat16 brain;
        std::memcpy(&brain, at, 2);
        return __bfloat162float(brain);
    }

    //! Fills the tensor and \return what it holds after rounding.
    template <typename Make>
    reference::Values fill(Make const& make)
    {
        reference::Values values(mCount);
        for (std::size_t i = 0; i < mCount; ++i)
        {
            set(i, make(i));
            values[i] = get(i);
        }
        return values;
    }

    std::size_t count() const
    {
        return mCount;
    }

private:
    DType mType;
    std::size_t mCount;
    std::size_t mOffset;
    std::unique_ptr<unsigned char, decltype(&std::free)> mBytes;
};

} // namespace testing
} // namespace vimdeploy
