//! \file causal_conv1d/kernel.cuh
//! The depthwise causal convolution of every group over one read of x.
//!
//!     direction  1:  u[t] = act(bias + sum_k w[k] * x[t - (K - 1) + k])      x = 0 outside the sequence
//!     direction -1:  u[t] = act(bias + sum_k w[k] * x[t + k])
//! act is silu (one ex2, one approximate reciprocal) or nothing; sums are float32, rounded once.
//!
//! Memory-bound: (1 + G) * sizeof(T) bytes and about 13 issue slots per (token, channel, group). A thread serves kWIDTH
//! neighbouring channels of kTOKENS tokens with the last K inputs in registers. Groups are run one after the other
//! over the same tokens: x comes from DRAM once and from L1 for every further group.
//!
//! Launch shape: 128 threads; a thread's index runs over the row's channel vectors first, then over runs of tokens,
//! then over the batch, so that a warp's accesses are consecutive at any E.
#pragma once

#include "kernels/common/device.cuh"
#include "layout.h"

namespace vimdeploy
{
namespace conv
{

struct Params
{
    void const* x;
    void const* weight;
    void const* bias;
    void* u;
    int64_t work; //!< threads with something to do
    int64_t batch;
    int64_t length;
    int32_t channels;
    int32_t groups;
    int32_t rowVectors; //!< ceil(channels / width of a thread)
    int64_t runs;       //!< ceil(length / kTOKENS)
    uint32_t backward;  //!< bit g: direction of group g is -1 (an array indexed by g would live in local memory)
    bool silu;
};

//! One group over one run of tokens.
//! \param x, u the sample's first element at this thread's channels
template <typename T, int kK, int kWIDTH>
__device__ __forceinline__ void convolveRun(Params const& p, T const* __restrict__ x, T* __restrict__ u, int32_t group,
    int32_t channel, int64_t begin, int32_t count)
{
    T const* weight = static_cast<T const*>(p.weight) + (static_cast<int64_t>(group) * p.channels + channel) * kK;
    T const* bias = static_cast<T const*>(p.bias) + static_cast<int64_t>(group) * p.channels + channel;
    float w[kWIDTH][kK];
    float b[kWIDTH];
#pragma unroll
    for (int32_t i = 0; i < kWIDTH; ++i)
    {
        b[i] = toFloat<T>(bias[i]);
#pragma unroll
        for (int32_t k = 0; k < kK; ++k)
        {
            w[i][k] = toFloat<T>(weight[i * kK + k]);
        }
    }
    // window[k] is the input of tap k for the current token.
    int64_t const reach = (p.backward >> group & 1U) == 0 ? kK - 1 : 0;
    Vector<T, kWIDTH> raw[kTOKENS + kK - 1];
#pragma unroll
    for (int32_t t = 0; t < kTOKENS + kK - 1; ++t)
    {
        int64_t const token = begin - reach + t;
        if (token >= 0 && token < p.length && t < count + kK - 1)
        {
            raw[t] = loadRaw<T, kWIDTH>(x + token * p.channels);
        }
        else
        {
#pragma unroll
            for (int32_t i = 0; i < kWIDTH; ++i)
            {
                raw[t].values[i] = fromFloat<T>(0.0F);
            }
        }
    }
    float window[kK][kWIDTH];
#pragma unroll
    for (int32_t k = 0; k + 1 < kK; ++k)
    {
        unpack(raw[k], window[k]);
    }
#pragma unroll
    for (int32_t t = 0; t < kTOKENS; ++t)
    {
        if (t >= count)
        {
            break;
        }
        unpack(raw[t + kK - 1], window[kK - 1]);
        float sums[kWIDTH];
#pragma unroll
        for (int32_t i = 0; i < kWIDTH; ++i)
        {
            sums[i] = b[i];
#pragma unroll
            for (int32_t k = 0; k < kK; ++k)
            {
                sums[i] = fmaf(window[k][i], w[i][k], sums[i]);
            }
            if (p.silu)
            {
                sums[i] = silu(sums[i]);
            }
        }
        storeCells<T, kWIDTH>(u + (begin + t) * p.channels, sums);
#pragma unroll
        for (int32_t k = 0; k + 1 < kK; ++k)
        {
#pragma unroll
            for (int32_t i = 0; i < kWIDTH; ++i)
            {
                window[k][i] = window[k + 1][i];
            }
        }
    }
}

//! \tparam kWIDTH channels per thread: kVECTOR where rows start on its multiples, else 1
template <typename T, int kK, int kWIDTH>
__global__ void __launch_bounds__(kTHREADS) convKernel(Params const p)
{
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kTHREADS + threadIdx.x;
    if (index >= p.work)
    {
        return;
    }
    int64_t const row = index / p.rowVectors;
    auto const channel = static_cast<int32_t>(index - row * p.rowVectors) * kWIDTH;
    int64_t const sample = row / p.runs;
    int64_t const begin = (row - sample * p.runs) * kTOKENS;
    auto const count = static_cast<int32_t>(p.length - begin < kTOKENS ? p.length - begin : kTOKENS);
    int64_t const sampleSize = p.length * p.channels;
    T const* x = static_cast<T const*>(p.x) + sample * sampleSize + channel;
    T* u = static_cast<T*>(p.u) + sample * sampleSize + channel;
#pragma unroll 1
    for (int32_t group = 0; group < p.groups; ++group)
    {
        convolveRun<T, kK, kWIDTH>(p, x, u + group * p.batch * sampleSize, group, channel, begin, count);
    }
}

} // namespace conv
} // namespace vimdeploy
