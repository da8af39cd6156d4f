//! \file cuda_fp16.h
//! IEEE half precision with CUDA's names, storage and conversions only (see ../README.md).
#pragma once

struct __half
{
    _Float16 value;
};

inline float __half2float(__half x)
{
    return static_cast<float>(x.value);
}

inline __half __float2half_rn(float x)
{
    return __half{static_cast<_Float16>(x)};
}
