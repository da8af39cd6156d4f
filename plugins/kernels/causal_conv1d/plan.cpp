//! \file causal_conv1d/plan.cpp
//! Checks a problem. Plain C++, no CUDA call.

#include "launch.h"
#include "layout.h"

#include <cstdio>

namespace vimdeploy
{
namespace
{

constexpr int64_t kMAX_BLOCKS = INT32_MAX;

int64_t divideUp(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

} // namespace

char const* checkConvShape(ConvShape const& shape, char* message, std::size_t size) noexcept
{
    auto const wrong = [&](char const* format, char const* field, int64_t value)
    {
        std::snprintf(message, size, format, field, static_cast<long long>(value));
        return message;
    };
    if (sizeOf(shape.type) == 0)
    {
        return wrong("%s is %lld; float32 (0), float16 (1) and bfloat16 (2) are served", "type",
            static_cast<int64_t>(shape.type));
    }
    if (shape.batch < 0 || shape.batch > kMAX_BLOCKS)
    {
        return wrong("%s is %lld; at least 0 is needed and at most 2147483647 served", "batch", shape.batch);
    }
    if (shape.length < 1 || shape.length > kMAX_BLOCKS)
    {
        return wrong("%s is %lld; 1 to 2147483647 tokens are served", "length", shape.length);
    }
    if (shape.channels < 1 || shape.channels > (1 << 24))
    {
        return wrong("%s is %lld; 1 to 16777216 are served", "channels", shape.channels);
    }
    if (shape.width < kMIN_CONV_WIDTH || shape.width > kMAX_CONV_WIDTH)
    {
        return wrong("%s (d_conv) is %lld; 2, 3 and 4 are served", "width", shape.width);
    }
    if (shape.groups != 1 && shape.groups != 2 && shape.groups != 4)
    {
        return wrong("%s is %lld; 1, 2 and 4 are served", "groups", shape.groups);
    }
    for (int32_t g = 0; g < shape.groups; ++g)
    {
        if (shape.directions[g] != 1 && shape.directions[g] != -1)
        {
            return wrong(
                "an entry of %s is %lld; 1 (forward) or -1 (backward) is expected", "directions", shape.directions[g]);
        }
    }
    int64_t const runs = divideUp(shape.length, conv::kTOKENS);
    if (shape.batch > 0 && runs * shape.channels > kMAX_BLOCKS * conv::kTHREADS / shape.batch)
    {
        return wrong("%s times length and channels is too large for one launch at batch %lld", "batch", shape.batch);
    }
    return nullptr;
}

char const* checkConvLaunch(ConvPointers const& pointers, char* message, std::size_t size) noexcept
{
    return checkPointers(
        {{"x", pointers.x}, {"weight", pointers.weight}, {"bias", pointers.bias}, {"u", pointers.u}}, message, size);
}

} // namespace vimdeploy
