//! \file selective_scan/recurrence.cuh
//! The recurrence itself: a thread's states of one channel, walked over a tile that lies in shared memory.
#pragma once

#include "params.cuh"

namespace vimdeploy
{
namespace scan
{

//! One thread's share of the recurrence: kSTATES states of one channel.
template <int kSTATES>
struct State
{
    float rate[kSTATES]; //!< A * log2(e)
    float h[kSTATES];
    float skip;     //!< D, in one thread of a channel; 0 in the others
    float deltaSum; //!< only followed by the states-only pass
};

//! Where a thread's walk over a tile in shared memory starts, and its (signed) steps from token to token.
struct Walk
{
    float2* slot;     //!< the first token's
    float const* row; //!< its B of this thread's states
    int32_t slotStep;
    int32_t rowStep;
    int32_t offsetC; //!< from B to C
    int32_t count;
    int32_t lanes; //!< threads that share the channel
    int32_t lane;  //!< this one's number among them, or in its warp where it has the channel to itself
};

//! Walks a tile that lies in shared memory.
//!
//! Where a thread has a channel to itself, the 32 sums of a warp go into consecutive words, over the slots that its
//! threads have just read: the epilogue then reads whole rows without a bank conflict (in the slots themselves, eight
//! bytes apart, every read would meet eight of its kind). Several threads of one channel leave two sums, in the two halves
//! of its slot; the last addition is the epilogue's.
template <int kSTATES, bool kSTATES_ONLY, bool kTWO_PARTS>
__device__ __forceinline__ void scanTile(State<kSTATES>& state, Walk const& walk)
{
    float2* slot = walk.slot;
    float const* row = walk.row;
#pragma unroll 2
    for (int32_t i = 0; i < walk.count; ++i)
    {
        float2 const input = *slot;
        float b[kSTATES];
        loadFloats<kSTATES>(row, b);
        float const increment = input.x * input.y;
        float even = state.skip * input.y;
        float odd = 0.0F;
        float c[kSTATES];
        if constexpr (!kSTATES_ONLY)
        {
            loadFloats<kSTATES>(row + walk.offsetC, c);
        }
        else
        {
            state.deltaSum += input.x;
        }
#pragma unroll
        for (int32_t n = 0; n < kSTATES; ++n)
        {
            float const decay = exp2Approx(input.x * state.rate[n]);
            state.h[n] = fmaf(decay, state.h[n], increment * b[n]);
            if constexpr (!kSTATES_ONLY)
            {
                float& sum = n % 2 == 0 ? even : odd;
                sum = fmaf(state.h[n], c[n], sum);
            }
        }
        if constexpr (!kSTATES_ONLY)
        {
            float sum = even + odd;
            if constexpr (!kTWO_PARTS)
            {
                __syncwarp(); // every thread has read its slot before a sum takes the place of any
                *(reinterpret_cast<float*>(slot) - walk.lane) = sum;
            }
            else if (walk.lanes == 1) // the generic kernel with few states
            {
                *slot = make_float2(sum, 0.0F);
            }
            else
            {
                for (int32_t distance = walk.lanes / 2; distance > 1; distance /= 2)
                {
                    sum += __shfl_xor_sync(0xffffffffU, sum, distance);
                }
                __syncwarp(); // every thread of the channel has read the slot before any of them overwrites it
                if (walk.lane < 2)
                {
                    (walk.lane == 0 ? slot->x : slot->y) = sum;
                }
            }
        }
        slot += walk.slotStep;
        row += walk.rowStep;
    }
}

//! kTOKENS tokens of a walk whose channel several threads share: their loads, exponentials and shuffles overlap, only the
//! recurrence itself is serial. One warp barrier for all of them.
template <int kSTATES, int kTOKENS>
__device__ __forceinline__ void scanTokens(State<kSTATES>& state, Walk const& walk, float2* slot, float const* row)
{
    float sums[kTOKENS];
    float decay[kTOKENS][kSTATES];
    float drive[kTOKENS][kSTATES];
    float c[kTOKENS][kSTATES];
#pragma unroll
    for (int32_t k = 0; k < kTOKENS; ++k)
    {
        float2 const input = slot[k * walk.slotStep];
        float b[kSTATES];
        loadFloats<kSTATES>(row + k * walk.rowStep, b);
        loadFloats<kSTATES>(row + k * walk.rowStep + walk.offsetC, c[k]);
        float const increment = input.x * input.y;
        sums[k] = state.skip * input.y;
#pragma unroll
        for (int32_t n = 0; n < kSTATES; ++n)
        {
            decay[k][n] = exp2Approx(input.x * state.rate[n]);
            drive[k][n] = increment * b[n];
        }
    }
#pragma unroll
    for (int32_t k = 0; k < kTOKENS; ++k)
    {
        float odd = 0.0F;
#pragma unroll
        for (int32_t n = 0; n < kSTATES; ++n)
        {
            state.h[n] = fmaf(decay[k][n], state.h[n], drive[k][n]);
            float& sum = n % 2 == 0 ? sums[k] : odd;
            sum = fmaf(state.h[n], c[k][n], sum);
        }
        sums[k] += odd;
    }
    for (int32_t distance = walk.lanes / 2; distance > 1; distance /= 2)
    {
#pragma unroll
        for (int32_t k = 0; k < kTOKENS; ++k)
        {
            sums[k] += __shfl_xor_sync(0xffffffffU, sums[k], distance);
        }
    }
    __syncwarp(); // every thread of a channel has read its slots before one of them overwrites any
    if (walk.lane < 2)
    {
#pragma unroll
        for (int32_t k = 0; k < kTOKENS; ++k)
        {
            reinterpret_cast<float*>(slot + k * walk.slotStep)[walk.lane] = sums[k];
        }
    }
}

//! scanTile() of the specialised kernels whose threads share a channel: as many tokens at a time as registers allow.
template <int kSTATES>
__device__ __forceinline__ void scanTileShared(State<kSTATES>& state, Walk const& walk)
{
    constexpr int32_t kTOKENS = kSTATES <= 4 ? 4 : 2;
    float2* slot = walk.slot;
    float const* row = walk.row;
    int32_t left = walk.count;
#pragma unroll 1
    for (; left >= kTOKENS; left -= kTOKENS)
    {
        scanTokens<kSTATES, kTOKENS>(state, walk, slot, row);
        slot += kTOKENS * walk.slotStep;
        row += kTOKENS * walk.rowStep;
    }
#pragma unroll 1
    for (; left > 0; --left)
    {
        scanTokens<kSTATES, 1>(state, walk, slot, row);
        slot += walk.slotStep;
        row += walk.rowStep;
    }
}

} // namespace scan
} // namespace vimdeploy
