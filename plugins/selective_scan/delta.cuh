//! \file delta.cuh
//! delta = softplus(dt_low . dt_weight + dt_bias), the dt projection fused into the scan: R multiply-adds per token and
//! channel that hide under the scan's exponentials up to R = 24, against two GEMMs and 8 bytes of traffic saved.
#pragma once

#include "stage.cuh"

namespace vimdeploy
{
namespace scan
{

//! log(1 + exp(v)) with the accuracy of log1p for every v.
//!
//! softplus(v) = max(v, 0) + log1p(q), q = exp(-|v|) in (0, 1]. log1p(q) is q times a polynomial (a minimax fit of
//! log1p(q) / q on [0, 1], relative error 2e-7 evaluated in float32): log2(1 + e) would be 6e-4 off at delta = 1e-4, and
//! lg2.approx is worse near 1. One exponential, no branch: above 20 the second term is below half an ulp of v, which is
//! the contract's threshold. The exponent -|v| is never positive, so nothing overflows.
__device__ __forceinline__ float softplus(float v)
{
    float const q = exp2Approx(-kLOG2_E * fabsf(v));
    float sum = 5.2326880395e-3F;
    sum = fmaf(sum, q, -2.9505213723e-2F);
    sum = fmaf(sum, q, 7.8225910664e-2F);
    sum = fmaf(sum, q, -1.3663242757e-1F);
    sum = fmaf(sum, q, 1.9106005132e-1F);
    sum = fmaf(sum, q, -2.4842981994e-1F);
    sum = fmaf(sum, q, 3.3319097757e-1F);
    sum = fmaf(sum, q, -4.9999493361e-1F);
    sum = fmaf(sum, q, 9.9999994040e-1F);
    return fmaf(q, sum, fmaxf(v, 0.0F));
}

//! Four weights of one channel, from shared memory or, where they are too large for it, through the caches.
//! \param weights the group's rows in global memory
template <typename T>
__device__ __forceinline__ void loadWeights(Params const& p, T const* staged, T const* weights, int32_t quad,
    int32_t channels, int32_t channel, int32_t globalChannel, float (&values)[4])
{
    if (p.stagedWeights)
    {
        loadVector<T, 4>(staged + (quad * channels + channel) * 4, values);
        return;
    }
#pragma unroll
    for (int32_t i = 0; i < 4; ++i)
    {
        int32_t const r = quad * 4 + i;
        bool const exists = r < p.rank && globalChannel < p.channels;
        values[i] = exists ? toFloat<T>(weights[static_cast<int64_t>(globalChannel) * p.rank + r]) : 0.0F;
    }
}

//! Fills the slots (delta, u) of a tile. A thread serves one channel and runs of kRUN tokens, so that a weight is
//! loaded once per run. Rows at or past `count` are computed from whatever lies there and not stored.
//! The tile's length is a multiple of kRUN.
template <typename T, int kRUN>
__device__ __forceinline__ void computeDelta(Params const& p, SharedLayout const& layout, float2* slots,
    float const* rows, T const* rawU, T const* staged, T const* weights, float const* bias, int32_t count,
    int32_t first, int32_t channels, int32_t thread)
{
    int32_t const channel = thread & (channels - 1);
    int32_t const globalChannel = first + channel;
    float const channelBias = globalChannel < p.channels ? bias[globalChannel] : 0.0F;
    int32_t const step = kSIDE_THREADS / channels * kRUN;
#pragma unroll 1
    for (int32_t start = thread / channels * kRUN; start < count; start += step)
    {
        float sums[kRUN];
#pragma unroll
        for (int32_t i = 0; i < kRUN; ++i)
        {
            sums[i] = channelBias;
        }
        float const* row = rows + start * layout.rowFloats;
#pragma unroll 1
        for (int32_t quad = 0; quad < layout.rankPadded / 4; ++quad)
        {
            float w[4];
            loadWeights<T>(p, staged, weights, quad, channels, channel, globalChannel, w);
#pragma unroll
            for (int32_t i = 0; i < kRUN; ++i)
            {
                float low[4];
                loadFloats<4>(row + i * layout.rowFloats + quad * 4, low);
                sums[i] = fmaf(low[0], w[0], sums[i]);
                sums[i] = fmaf(low[1], w[1], sums[i]);
                sums[i] = fmaf(low[2], w[2], sums[i]);
                sums[i] = fmaf(low[3], w[3], sums[i]);
            }
        }
#pragma unroll
        for (int32_t i = 0; i < kRUN; ++i)
        {
            int32_t const token = start + i;
            if (token < count)
            {
                slots[token * channels + channel]
                    = make_float2(softplus(sums[i]), toFloat<T>(rawU[token * channels + channel]));
            }
        }
    }
}

} // namespace scan
} // namespace vimdeploy
