//! \file device.cuh
//! The few words of CUDA the kernels are written in, each with a host twin so that the same sources run under g++ and
//! its sanitizers (emulation/): conversions, vectors, approximate instructions, asynchronous copies, fast division.
//! No CUB, no cooperative groups, no framework.
#pragma once

#include "types.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <type_traits>

#if defined(VIMDEPLOY_EMULATION)
#include "emulation/device_emulation.h"
#else
#define VIMDEPLOY_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define VIMDEPLOY_LAUNCH(kernel, grid, block, sharedBytes, stream, params) \
    (kernel<<<(grid), (block), (sharedBytes), (stream)>>>(params), cudaGetLastError())
#endif

namespace vimdeploy
{

constexpr float kLOG2_E = 1.4426950408889634F;

template <typename T>
__device__ __forceinline__ float toFloat(T value);
template <>
__device__ __forceinline__ float toFloat<float>(float value)
{
    return value;
}
template <>
__device__ __forceinline__ float toFloat<__half>(__half value)
{
    return __half2float(value);
}
template <>
__device__ __forceinline__ float toFloat<__nv_bfloat16>(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

template <typename T>
__device__ __forceinline__ T fromFloat(float value);
template <>
__device__ __forceinline__ float fromFloat<float>(float value)
{
    return value;
}
template <>
__device__ __forceinline__ __half fromFloat<__half>(float value)
{
    return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 fromFloat<__nv_bfloat16>(float value)
{
    return __float2bfloat16_rn(value);
}

//! kCOUNT elements that move as one load or store: 4, 8 or 16 bytes, aligned to their size.
template <typename T, int kCOUNT>
struct alignas(sizeof(T) * kCOUNT) Vector
{
    T values[kCOUNT];
};

template <int kBYTES>
struct WordOf;
template <>
struct WordOf<4>
{
    using Type = uint32_t;
};
template <>
struct WordOf<8>
{
    using Type = uint2;
};
template <>
struct WordOf<16>
{
    using Type = uint4;
};

//! Cells of a row, one or a vector of them, as they lie in memory.
template <typename T, int kCOUNT>
__device__ __forceinline__ Vector<T, kCOUNT> loadRaw(T const* source)
{
    Vector<T, kCOUNT> raw;
    if constexpr (kCOUNT == 1)
    {
        raw.values[0] = *source;
    }
    else
    {
        using Word = typename WordOf<sizeof(T) * kCOUNT>::Type;
        Word const word = *reinterpret_cast<Word const*>(source);
        memcpy(&raw, &word, sizeof(word));
    }
    return raw;
}

template <typename T, int kCOUNT>
__device__ __forceinline__ void unpack(Vector<T, kCOUNT> const& raw, float (&values)[kCOUNT])
{
#pragma unroll
    for (int i = 0; i < kCOUNT; ++i)
    {
        values[i] = toFloat<T>(raw.values[i]);
    }
}

//! One vector load, converted. `source` is aligned to kCOUNT elements.
template <typename T, int kCOUNT>
__device__ __forceinline__ void loadVector(T const* source, float (&values)[kCOUNT])
{
    unpack(loadRaw<T, kCOUNT>(source), values);
}

//! Rounds and stores as one vector.
template <typename T, int kCOUNT>
__device__ __forceinline__ void storeVector(T* target, float const (&values)[kCOUNT])
{
    using Word = typename WordOf<sizeof(T) * kCOUNT>::Type;
    T elements[kCOUNT];
#pragma unroll
    for (int i = 0; i < kCOUNT; ++i)
    {
        elements[i] = fromFloat<T>(values[i]);
    }
    Word word;
    memcpy(&word, elements, sizeof(word));
    *reinterpret_cast<Word*>(target) = word;
}

//! kCOUNT floats in 16-byte steps (or one by one where kCOUNT is no multiple of 4), to or from aligned memory.
template <int kCOUNT>
__device__ __forceinline__ void loadFloats(float const* source, float (&values)[kCOUNT])
{
    if constexpr (kCOUNT % 4 == 0)
    {
#pragma unroll
        for (int i = 0; i < kCOUNT; i += 4)
        {
            float4 const word = *reinterpret_cast<float4 const*>(source + i);
            values[i] = word.x;
            values[i + 1] = word.y;
            values[i + 2] = word.z;
            values[i + 3] = word.w;
        }
    }
    else
    {
#pragma unroll
        for (int i = 0; i < kCOUNT; ++i)
        {
            values[i] = source[i];
        }
    }
}

template <int kCOUNT>
__device__ __forceinline__ void storeFloats(float* target, float const (&values)[kCOUNT])
{
    static_assert(kCOUNT % 4 == 0, "whole 16-byte words");
#pragma unroll
    for (int i = 0; i < kCOUNT; i += 4)
    {
        *reinterpret_cast<float4*>(target + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
    }
}

//! Rounds and stores one cell or a vector of them.
template <typename T, int kCOUNT>
__device__ __forceinline__ void storeCells(T* target, float const (&values)[kCOUNT])
{
    if constexpr (kCOUNT == 1)
    {
        *target = fromFloat<T>(values[0]);
    }
    else if constexpr (sizeof(T) * kCOUNT > 16)
    {
        storeFloats<kCOUNT>(target, values);
    }
    else
    {
        storeVector<T, kCOUNT>(target, values);
    }
}

//! 2^x, relative error 2^-22. The plain form adds a compare and two multiplies for denormals, once per state.
__device__ __forceinline__ float exp2Approx(float x)
{
#if defined(VIMDEPLOY_EMULATION)
    return emulation::exp2Approx(x);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#endif
}

//! 1/x, 1 ulp, 0 for |x| > 2^126. IEEE division is a call with a slow path.
__device__ __forceinline__ float reciprocalApprox(float x)
{
#if defined(VIMDEPLOY_EMULATION)
    return emulation::reciprocalApprox(x);
#else
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#endif
}

__device__ __forceinline__ float silu(float x)
{
    return x * reciprocalApprox(1.0F + exp2Approx(-kLOG2_E * x));
}

//! Whether mma.sync.m16n8k8 multiplies T on the architecture being compiled for.
template <typename T>
constexpr bool kTENSOR_CORES = false;
#if defined(VIMDEPLOY_EMULATION) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 750
template <>
constexpr bool kTENSOR_CORES<__half> = true;
#endif
#if defined(VIMDEPLOY_EMULATION) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
constexpr bool kTENSOR_CORES<__nv_bfloat16> = true;
#endif

//! c (16 x 8, float32) += a (16 x 8) * b (8 x 8), spread over a warp. With g = lane / 4 and t = lane % 4 a lane holds
//!     a[0]: row g, columns 2t and 2t + 1      a[1]: row g + 8      b: rows 2t and 2t + 1, column g
//!     c[0], c[1]: row g, columns 2t, 2t + 1   c[2], c[3]: row g + 8
template <typename T>
__device__ __forceinline__ void multiplyTiles(float (&c)[4], uint32_t const (&a)[2], uint32_t b)
{
#if defined(VIMDEPLOY_EMULATION)
    T pairs[3][2];
    memcpy(pairs[0], &a[0], 4);
    memcpy(pairs[1], &a[1], 4);
    memcpy(pairs[2], &b, 4);
    emulation::MmaLane lane{};
    for (int i = 0; i < 4; ++i)
    {
        lane.a[i] = toFloat<T>(pairs[i / 2][i % 2]);
        lane.c[i] = c[i];
    }
    lane.b[0] = toFloat<T>(pairs[2][0]);
    lane.b[1] = toFloat<T>(pairs[2][1]);
    emulation::mma(lane, __FILE__, __LINE__);
    memcpy(c, lane.c, sizeof(c));
#else
    if constexpr (std::is_same_v<T, __half>)
    {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(b));
    }
    else
    {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(b));
    }
#endif
}

//! Starts a copy of kBYTES from global to shared memory; visible after asyncCopyWait() and a barrier.
//! Before sm_80 it is a plain copy through registers.
template <int kBYTES>
__device__ __forceinline__ void asyncCopy(void* shared, void const* global)
{
#if defined(VIMDEPLOY_EMULATION)
    emulation::asyncCopy(shared, global, kBYTES);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    auto const target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(target), "l"(global), "n"(kBYTES) : "memory");
#else
    using Word = typename WordOf<kBYTES>::Type;
    *static_cast<Word*>(shared) = *static_cast<Word const*>(global);
#endif
}

//! The same value, of which the compiler knows nothing: what is computed from it inside a loop stays inside, instead of
//! being hoisted and held in registers (or spilled) across it.
__device__ __forceinline__ int32_t opaque(int32_t value)
{
#if !defined(VIMDEPLOY_EMULATION)
    asm volatile("mov.b32 %0, %0;" : "+r"(value));
#endif
    return value;
}

//! Waits for every copy this thread has started.
__device__ __forceinline__ void asyncCopyWait()
{
#if defined(VIMDEPLOY_EMULATION)
    emulation::asyncCopyWait();
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

//! Division of numbers below 2^31 by a fixed divisor: one high multiply, one add, one shift.
struct FastDivisor
{
    uint32_t divisor{1};
    uint32_t multiplier{1};
    uint32_t shift{0};
};

inline FastDivisor makeFastDivisor(uint32_t divisor)
{
    FastDivisor result;
    result.divisor = divisor;
    while ((uint64_t{1} << result.shift) < divisor)
    {
        ++result.shift;
    }
    uint64_t const power = uint64_t{1} << result.shift;
    result.multiplier = static_cast<uint32_t>(((power - divisor) << 32U) / divisor + 1U);
    return result;
}

__device__ __forceinline__ uint32_t quotient(uint32_t value, FastDivisor const& by)
{
    return (__umulhi(value, by.multiplier) + value) >> by.shift;
}

} // namespace vimdeploy
