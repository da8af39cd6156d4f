//! \file selective_scan/chunks.cuh
//! What the chunks of a long sequence leave for each other: the state a chunk ends with, and the sum of its delta.
#pragma once

#include "recurrence.cuh"

namespace vimdeploy
{
namespace scan
{

//! Where a chunk's end state of one thread lies: its states are neighbours in memory.
template <int kSTATES>
__device__ __forceinline__ float* chunkStateOf(Params const& p, int64_t piece, int32_t channel, int32_t firstState)
{
    return p.chunkState + (piece * p.channels + channel) * p.states + firstState;
}

//! The state a chunk starts from, out of what the chunks before it (in walking order) left.
//! \tparam kPADDED the last states of a thread may not exist
template <int kSTATES, bool kPADDED>
__device__ __forceinline__ void startState(Params const& p, State<kSTATES>& state, int32_t sideIndex, int32_t direction,
    int64_t sample, int32_t chunk, int32_t channel, int32_t firstState)
{
    int64_t const base = (sideIndex * p.batch + sample) * p.chunks;
    int32_t const before = direction > 0 ? chunk : p.chunks - 1 - chunk;
    // Unrolled for the loads of several chunks to be under way at once: only the multiply-adds wait for each other.
#pragma unroll(kSTATES > 8 ? 2 : 4)
    for (int32_t i = 0; i < before; ++i)
    {
        int64_t const piece = base + (direction > 0 ? i : p.chunks - 1 - i);
        float const sum = p.chunkDelta[piece * p.channels + channel];
        float const* end = chunkStateOf<kSTATES>(p, piece, channel, firstState);
        float last[kSTATES];
        if constexpr (kPADDED)
        {
#pragma unroll
            for (int32_t n = 0; n < kSTATES; ++n)
            {
                last[n] = firstState + n < p.states ? end[n] : 0.0F;
            }
        }
        else
        {
            loadFloats<kSTATES>(end, last);
        }
#pragma unroll
        for (int32_t n = 0; n < kSTATES; ++n)
        {
            state.h[n] = fmaf(exp2Approx(sum * state.rate[n]), state.h[n], last[n]);
        }
    }
}

template <int kSTATES, bool kPADDED>
__device__ __forceinline__ void leaveState(Params const& p, State<kSTATES> const& state, int32_t sideIndex,
    int64_t sample, int32_t chunk, int32_t channel, int32_t firstState)
{
    int64_t const piece = (sideIndex * p.batch + sample) * p.chunks + chunk;
    float* end = chunkStateOf<kSTATES>(p, piece, channel, firstState);
    if constexpr (!kPADDED && kSTATES % 4 == 0)
    {
        storeFloats<kSTATES>(end, state.h);
    }
    else
    {
#pragma unroll
        for (int32_t n = 0; n < kSTATES; ++n)
        {
            if (firstState + n < p.states)
            {
                end[n] = state.h[n];
            }
        }
    }
    if (firstState == 0)
    {
        p.chunkDelta[piece * p.channels + channel] = state.deltaSum;
    }
}

} // namespace scan
} // namespace vimdeploy
