//! \file kernels.inl
//! The one source of all kernels. A unit defines VIMDEPLOY_LANES, VIMDEPLOY_CHUNK (states held in registers),
//! VIMDEPLOY_KERNELS (the table's name) and VIMDEPLOY_ISA, and includes this.
#include "cpu/coefficients.h"
#include "cpu/kernels.h"

#include <string.h>

#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__x86_64__)
#include <immintrin.h>
// Its intrinsics start from a deliberately undefined vector.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace vimdeploy::cpu
{

#include "cpu/simd.inl"

#include "cpu/convert.inl"

#include "cpu/conv.inl"

#include "cpu/scan.inl"

namespace
{

void exp2Of(float const* x, float* y, int64_t count)
{
    forEachVector(x, y, count, [](Vec v) { return exp2OfProduct(v, splat(1.0F)); });
}

void softplusOf(float const* x, float* y, int64_t count)
{
    forEachVector(x, y, count, [](Vec v) { return softplus(v); });
}

void siluOf(float const* x, float* y, int64_t count)
{
    forEachVector(x, y, count, [](Vec v) { return silu(v); });
}

} // namespace

extern Kernels const VIMDEPLOY_KERNELS = {VIMDEPLOY_ISA, kLANES, packScan, packDelta, packConv, scan, scanDelta, conv,
    fromHalf, toHalf, fromBrain, toBrain, exp2Of, softplusOf, siluOf};

} // namespace vimdeploy::cpu
