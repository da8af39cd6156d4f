//! \file epilogue.cuh
//! What happens to a token's sums: wait in `partial` as float32 for the other visits, or be gated, scaled, rounded once
//! and stored. z is read and y is written once per token and channel, four channels at a time where the rows allow it.
#pragma once

#include "stage.cuh"

namespace vimdeploy
{
namespace scan
{

//! One visit of a tile by a side (or by both at once, when they meet on it).
struct Visit
{
    Tile tile;
    float2 const* slots;
    float2 const* otherSlots; //!< the other side's sums of the same tile, or null
    int32_t limit;            //!< channels at or past it are not this block's
    int32_t thread;           //!< of `threads` that share the visit
    int32_t threads;
    bool addsPartial; //!< earlier visits left sums
    bool finishes;    //!< the last visit: gate, scale, store
};

template <int kWIDTH, bool kTWO_PARTS>
__device__ __forceinline__ void addSlots(float2 const* slots, float (&sums)[kWIDTH])
{
    if constexpr (!kTWO_PARTS)
    {
        float part[kWIDTH];
        loadFloats<kWIDTH>(reinterpret_cast<float const*>(slots), part);
#pragma unroll
        for (int32_t i = 0; i < kWIDTH; ++i)
        {
            sums[i] += part[i];
        }
    }
    else if constexpr (kWIDTH % 2 == 0)
    {
#pragma unroll
        for (int32_t i = 0; i < kWIDTH; i += 2)
        {
            float4 const pair = *reinterpret_cast<float4 const*>(slots + i);
            sums[i] += pair.x + pair.y;
            sums[i + 1] += pair.z + pair.w;
        }
    }
    else
    {
        sums[0] += slots->x + slots->y;
    }
}

//! A thread's channels are the same in every row it serves: its addresses advance by constants.
template <typename T, int kWIDTH, bool kTWO_PARTS, bool kFINISHES, bool kCOLUMN>
__device__ __forceinline__ void finishCells(
    Params const& p, Visit const& visit, int32_t first, int32_t channels, float* partial, T const* z, void* y)
{
    int32_t const perRow = channels / kWIDTH;
    int32_t const rowStep = visit.threads / perRow;
    int32_t const column = (visit.thread & (perRow - 1)) * kWIDTH;
    if (first + column >= visit.limit)
    {
        return;
    }
    int32_t row = visit.thread / perRow;
    auto const inRow = kTWO_PARTS ? 2 * column : column / 32 * 64 + column % 32;
    float const* slot = reinterpret_cast<float const*>(visit.slots) + row * channels * 2 + inRow;
    int32_t const other = visit.otherSlots != nullptr ? static_cast<int32_t>(visit.otherSlots - visit.slots) * 2 : 0;
    bool const gated = p.gated;
    int32_t offset = row * p.channels + column; // from the tile's first row: below 2^31
#pragma unroll 2
    for (; row < visit.tile.count; row += rowStep)
    {
        int64_t const at = kCOLUMN ? tokenOf(p, visit.tile.first + row) * p.channels + first + column : offset;
        float sums[kWIDTH]{};
        Vector<T, kWIDTH> gate;
        if (visit.addsPartial)
        {
            loadFloats<kWIDTH>(partial + at, sums);
        }
        if (kFINISHES && gated)
        {
            gate = loadRaw<T, kWIDTH>(z + at);
        }
        addSlots<kWIDTH, kTWO_PARTS>(reinterpret_cast<float2 const*>(slot), sums);
        if (other != 0)
        {
            addSlots<kWIDTH, kTWO_PARTS>(reinterpret_cast<float2 const*>(slot + other), sums);
        }
        if constexpr (!kFINISHES)
        {
            storeCells<float, kWIDTH>(partial + at, sums);
        }
        else if (gated)
        {
            float gates[kWIDTH];
            unpack(gate, gates);
#pragma unroll
            for (int32_t i = 0; i < kWIDTH; ++i)
            {
                sums[i] *= p.scale * silu(gates[i]);
            }
            storeCells<T, kWIDTH>(static_cast<T*>(y) + at, sums);
        }
        else
        {
#pragma unroll
            for (int32_t i = 0; i < kWIDTH; ++i)
            {
                sums[i] *= p.scale;
            }
            storeCells<float, kWIDTH>(static_cast<float*>(y) + at, sums);
        }
        offset += rowStep * p.channels;
        slot += rowStep * channels * 2;
    }
}

template <typename T, bool kTWO_PARTS, int kWIDTH, bool kCOLUMN>
__device__ __forceinline__ void finishEither(
    Params const& p, Visit const& visit, int64_t start, int32_t first, int32_t channels)
{
    float* partial = p.partial + start;
    if (visit.finishes)
    {
        T const* z = static_cast<T const*>(p.z) + start;
        void* y = p.gated ? static_cast<void*>(static_cast<T*>(p.y) + start)
                          : static_cast<void*>(static_cast<float*>(p.y) + start);
        finishCells<T, kWIDTH, kTWO_PARTS, true, kCOLUMN>(p, visit, first, channels, partial, z, y);
    }
    else
    {
        finishCells<T, kWIDTH, kTWO_PARTS, false, kCOLUMN>(p, visit, first, channels, partial, nullptr, nullptr);
    }
}

//! \param first the block's first channel
//! \param sample the batch entry
template <typename T, bool kTWO_PARTS>
__device__ __forceinline__ void finishTile(
    Params const& p, Visit const& visit, int64_t sample, int32_t first, int32_t channels)
{
    int64_t const start = sample * p.length * p.channels;
    if (p.columnMajor)
    {
        p.vectorized ? finishEither<T, kTWO_PARTS, 4, true>(p, visit, start, first, channels)
                     : finishEither<T, kTWO_PARTS, 1, true>(p, visit, start, first, channels);
    }
    else
    {
        int64_t const tile = start + static_cast<int64_t>(visit.tile.first) * p.channels + first;
        p.vectorized ? finishEither<T, kTWO_PARTS, 4, false>(p, visit, tile, first, channels)
                     : finishEither<T, kTWO_PARTS, 1, false>(p, visit, tile, first, channels);
    }
}

} // namespace scan
} // namespace vimdeploy
