//! \file buffer.h
//! Memory for whole vectors.
#pragma once

#include "cpu/signature.h"

#include <cstdlib>

namespace vimdeploy::cpu
{

//! Floats at an address that suits every vector; not initialised.
class Buffer
{
public:
    Buffer() noexcept = default;

    ~Buffer()
    {
        std::free(mData);
    }

    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;

    //! Takes memory for count * times floats in place of what it had. \return false where there is none.
    [[nodiscard]] bool take(int64_t count, int64_t times = 1) noexcept
    {
        std::free(mData);
        mData = nullptr;
        int64_t bytes = sizeof(float);
        if (!multiply(bytes, count) || !multiply(bytes, times) || bytes > INT64_MAX - kALIGNMENT)
        {
            return false;
        }
        size_t const whole = (static_cast<size_t>(bytes) / kALIGNMENT + 1) * kALIGNMENT;
        mData = static_cast<float*>(std::aligned_alloc(kALIGNMENT, whole));
        return mData != nullptr;
    }

    [[nodiscard]] float* data() const noexcept
    {
        return mData;
    }

private:
    static constexpr int64_t kALIGNMENT = 64;

    float* mData{nullptr};
};

} // namespace vimdeploy::cpu
