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
//! log1p(q) / q on [0, 1], relative error 3.5e-7 evaluated in float32): log2(1 + e) would be 6e-4 off at delta = 1e-4, and
//! lg2.approx is worse near 1. One exponential, no branch: above 20 the second term is below half an ulp of v, which is
//! the contract's threshold. The exponent -|v| is never positive, so nothing overflows.
__device__ __forceinline__ float softplus(float v)
{
    float const q = exp2Approx(-kLOG2_E * fabsf(v));
    float sum = -8.5391988977e-3F;
    sum = fmaf(sum, q, 4.4089596719e-2F);
    sum = fmaf(sum, q, -1.0768166184e-1F);
    sum = fmaf(sum, q, 1.7745238543e-1F);
    sum = fmaf(sum, q, -2.4495461583e-1F);
    sum = fmaf(sum, q, 3.3275479078e-1F);
    sum = fmaf(sum, q, -4.9997404218e-1F);
    sum = fmaf(sum, q, 9.9999982119e-1F);
    return fmaf(q, sum, fmaxf(v, 0.0F));
}

//! Adds dt_low . dt_weight of one channel over kDELTA_RUN tokens.
//! \tparam kSTAGED the weights lie in shared memory; else they are too large for it and read through the caches
//! \param row the first token's dt_low
//! \param staged this channel's first four weights in shared memory, `stride` elements before the next four
//! \param weights this channel's row in global memory, null where the channel does not exist
template <typename T, bool kSTAGED>
__device__ __forceinline__ void addProducts(Params const& p, SharedLayout const& layout, float const* row,
    T const* staged, int32_t stride, T const* weights, float (&sums)[kDELTA_RUN])
{
#pragma unroll 1
    for (int32_t quad = 0; quad < layout.rankPadded / 4; ++quad)
    {
        float w[4];
        if constexpr (kSTAGED)
        {
            loadVector<T, 4>(staged + quad * stride, w);
        }
        else
        {
#pragma unroll
            for (int32_t i = 0; i < 4; ++i)
            {
                int32_t const r = quad * 4 + i;
                w[i] = r < p.rank && weights != nullptr ? toFloat<T>(weights[r]) : 0.0F;
            }
        }
#pragma unroll
        for (int32_t i = 0; i < kDELTA_RUN; ++i)
        {
            float low[4];
            loadFloats<4>(row + i * layout.rowFloats + quad * 4, low);
            sums[i] = fmaf(low[0], w[0], sums[i]);
            sums[i] = fmaf(low[1], w[1], sums[i]);
            sums[i] = fmaf(low[2], w[2], sums[i]);
            sums[i] = fmaf(low[3], w[3], sums[i]);
        }
    }
}

//! Fills the slots (delta, u) of a tile. A thread serves one channel and runs of kDELTA_RUN tokens, so that a weight is
//! loaded once per run. A tile's room is a multiple of kDELTA_RUN: slots at or past `count` are filled from whatever lies there
//! and never read. A guard per token would be a branch per token, and the chains of softplus could not overlap.
template <typename T>
__device__ __forceinline__ void computeDelta(Params const& p, SharedLayout const& layout, float2* slots,
    float const* rows, T const* rawU, T const* staged, T const* weights, float const* biases, int32_t count,
    int32_t first, int32_t channels, int32_t thread)
{
    int32_t const channel = thread & (channels - 1);
    float const bias = biases[channel];
    int32_t const globalChannel = first + channel;
    int32_t const step = kSIDE_THREADS / channels * kDELTA_RUN;
#pragma unroll 1
    for (int32_t start = thread / channels * kDELTA_RUN; start < count; start += step)
    {
        float sums[kDELTA_RUN];
#pragma unroll
        for (int32_t i = 0; i < kDELTA_RUN; ++i)
        {
            sums[i] = bias;
        }
        float const* row = rows + start * layout.rowFloats;
        if (p.stagedWeights)
        {
            addProducts<T, true>(p, layout, row, staged + channel * 4, channels * 4, nullptr, sums);
        }
        else
        {
            T const* own
                = globalChannel < p.channels ? weights + static_cast<int64_t>(globalChannel) * p.rank : nullptr;
            addProducts<T, false>(p, layout, row, nullptr, 0, own, sums);
        }
        float inputs[kDELTA_RUN];
#pragma unroll
        for (int32_t i = 0; i < kDELTA_RUN; ++i)
        {
            inputs[i] = toFloat<T>(rawU[(start + i) * layout.rawURow + channel]);
            sums[i] = softplus(sums[i]);
        }
#pragma unroll
        for (int32_t i = 0; i < kDELTA_RUN; ++i)
        {
            slots[(start + i) * channels + channel] = make_float2(sums[i], inputs[i]);
        }
    }
}

//! Fills the slots of a tile from delta as it was given. A thread serves one channel; columns that do not exist, and rows
//! past `count`, are filled from whatever lies there and never read.
template <typename T>
__device__ __forceinline__ void takeDelta(Params const& p, SharedLayout const& layout, float2* slots, T const* rawDelta,
    T const* rawU, float const* biases, int32_t count, int32_t channels, int32_t thread)
{
    int32_t const channel = thread & (channels - 1);
    float const bias = biases[channel];
    int32_t const step = kSIDE_THREADS / channels;
#pragma unroll 2
    for (int32_t row = thread / channels; row < count; row += step)
    {
        int32_t const cell = row * layout.rawURow + channel;
        float const delta = toFloat<T>(rawDelta[cell]) + bias;
        slots[row * channels + channel]
            = make_float2(p.deltaSoftplus ? softplus(delta) : delta, toFloat<T>(rawU[cell]));
    }
}

//! The same on tensor cores: a warp multiplies 16 tokens of dt_low, straight from the raw tile, with the weights of 8
//! channels, and has four deltas of two channels in each thread. A third of the issue slots of the plain form at
//! R = 12. Products of T are exact in float32 and so are the sums up to their order.
//!
//! Columns of dt_low past R are B: they are masked, not multiplied by zero, which would let an infinity through. Rows
//! past the tile's room are clamped; those past `count` are computed from whatever lies there and never read.
//! \tparam kTILES blocks of 8 channels a warp works on at a time: two where it has them, for their chains to overlap
template <typename T, int kTILES>
__device__ __forceinline__ void computeDeltaTensor(Params const& p, float2* slots, T const* rawX, T const* rawU,
    T const* staged, float const* biases, int32_t count, int32_t channels, int32_t thread)
{
    constexpr int32_t kROWS = 16;
    constexpr int32_t kCOLUMNS = 8 * kTILES;
    constexpr int32_t kDEPTH = 8;
    int32_t const lane = thread & 31;
    int32_t const group = lane >> 2;
    int32_t const pair = (lane & 3) * 2;
    int32_t const width = p.rank + 2 * p.states;
    int32_t const rawURow = channels + 16 / static_cast<int32_t>(sizeof(T)); // SharedLayout::rawURow
    auto const wordAt = [](T const* at) { return *reinterpret_cast<uint32_t const*>(at); };
#pragma unroll 1
    for (int32_t start = 0; start < count; start += kROWS)
    {
        int32_t const last = p.tileLength - 1;
        int32_t const rows[2]{min(start + group, last), min(start + group + kROWS / 2, last)};
        T const* low[2]{rawX + rows[0] * width + pair, rawX + rows[1] * width + pair};
#pragma unroll 1
        for (int32_t first = thread / 32 * kCOLUMNS; first < channels; first += kSIDE_THREADS / 32 * kCOLUMNS)
        {
            float sums[kTILES][4];
#pragma unroll
            for (int32_t i = 0; i < kTILES; ++i)
            {
                sums[i][0] = sums[i][2] = biases[first + 8 * i + pair];
                sums[i][1] = sums[i][3] = biases[first + 8 * i + pair + 1];
            }
            T const* weights = staged + (pair / 4 * channels + first + group) * 4 + pair % 4;
#pragma unroll 1
            for (int32_t depth = 0; depth < p.rank; depth += kDEPTH)
            {
                bool const exists = depth + pair < p.rank;
                uint32_t const a[2]{exists ? wordAt(low[0] + depth) : 0U, exists ? wordAt(low[1] + depth) : 0U};
#pragma unroll
                for (int32_t i = 0; i < kTILES; ++i)
                {
                    multiplyTiles<T>(sums[i], a, exists ? wordAt(weights + depth * channels + 32 * i) : 0U);
                }
            }
#pragma unroll
            for (int32_t i = 0; i < 2 * kTILES; ++i)
            {
                float (&own)[4] = sums[i / 2];
                int32_t const column = first + i / 2 * 8 + pair;
                int32_t const slot = rows[i % 2] * channels + column;
                float u[2];
                loadVector<T, 2>(rawU + rows[i % 2] * rawURow + column, u);
                float4 const pairOfSlots
                    = make_float4(softplus(own[i % 2 * 2]), u[0], softplus(own[i % 2 * 2 + 1]), u[1]);
                if (start + group + i % 2 * kROWS / 2 <= last) // else the clamped row is another thread's
                {
                    *reinterpret_cast<float4*>(slots + slot) = pairOfSlots;
                }
            }
        }
    }
}

} // namespace scan
} // namespace vimdeploy
