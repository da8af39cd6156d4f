//! \file cuda_bf16.h
//! bfloat16 with CUDA's names, storage and conversions only (see ../README.md).
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16
{
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x)
{
    uint32_t const word = static_cast<uint32_t>(x.bits) << 16U;
    float value;
    std::memcpy(&value, &word, sizeof(value));
    return value;
}

inline __nv_bfloat16 __float2bfloat16_rn(float x)
{
    uint32_t word;
    std::memcpy(&word, &x, sizeof(word));
    if (x != x)
    {
        return __nv_bfloat16{0x7fff};
    }
    uint32_t const roundToEven = 0x7fffU + (word >> 16U & 1U);
    return __nv_bfloat16{static_cast<uint16_t>((word + roundToEven) >> 16U)};
}
