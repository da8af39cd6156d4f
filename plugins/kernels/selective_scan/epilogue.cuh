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
    int32_t thread;           //!< of `threads` that share the visit
    int32_t threads;
    bool addsPartial; //!< earlier visits left sums
    bool finishes;    //!< the last visit: gate, scale, store
};

//! kWIDTH neighbouring channels of one token. load() and finish() are apart so that the loads of two cells overlap:
//! the compiler may not move the second cell's loads above the first one's stores.
template <typename T, int kWIDTH, bool kTWO_PARTS>
struct Cell
{
    int64_t offset{-1};
    int32_t slot{0};
    float before[kWIDTH];
    Vector<T, kWIDTH> gate; //!< as loaded: half the registers of its float32 form

    //! Adds the sums of kWIDTH neighbouring slots: one part where one thread has a channel, two where several share it.
    static __device__ __forceinline__ void addSlots(float2 const* slots, float (&sums)[kWIDTH])
    {
        if constexpr (kWIDTH % 2 == 0)
        {
#pragma unroll
            for (int32_t i = 0; i < kWIDTH; i += 2)
            {
                float4 const pair = *reinterpret_cast<float4 const*>(slots + i);
                sums[i] += kTWO_PARTS ? pair.x + pair.y : pair.x;
                sums[i + 1] += kTWO_PARTS ? pair.z + pair.w : pair.z;
            }
        }
        else
        {
            sums[0] += kTWO_PARTS ? slots->x + slots->y : slots->x;
        }
    }

    //! \param partial, z the sample's first element
    __device__ __forceinline__ void load(Params const& p, Visit const& visit, int32_t index, int32_t first,
        int32_t channels, float const* partial, T const* z)
    {
        int32_t const perRow = channels / kWIDTH;
        int32_t const row
            = index / perRow; // perRow is a power of two, known at compile time but for the generic kernel
        int32_t const column = (index - row * perRow) * kWIDTH;
        offset = -1;
#if VIMDEPLOY_MUTANT == 5
        bool const exists = true;
#else
        bool const exists = row < visit.tile.count && first + column < p.channels;
#endif
        if (!exists)
        {
            return;
        }
        offset = tokenOf(p, visit.tile.first + row) * p.channels + first + column;
        slot = row * channels + column;
        if (visit.addsPartial)
        {
            if constexpr (kWIDTH == 1)
            {
                before[0] = partial[offset];
            }
            else
            {
                loadFloats<kWIDTH>(partial + offset, before);
            }
        }
        if (visit.finishes && p.gated)
        {
            gate = loadRaw<T, kWIDTH>(z + offset);
        }
    }

    //! \param partial, y the sample's first element
    __device__ __forceinline__ void finish(Params const& p, Visit const& visit, float* partial, void* y)
    {
        if (offset < 0)
        {
            return;
        }
        float sums[kWIDTH]{};
        if (visit.addsPartial)
        {
#pragma unroll
            for (int32_t i = 0; i < kWIDTH; ++i)
            {
                sums[i] = before[i];
            }
        }
        addSlots(visit.slots + slot, sums);
        if (visit.otherSlots != nullptr)
        {
            addSlots(visit.otherSlots + slot, sums);
        }
        if (visit.finishes)
        {
            float gates[kWIDTH];
            unpack(gate, gates);
#pragma unroll
            for (int32_t i = 0; i < kWIDTH; ++i)
            {
                sums[i] *= p.gated ? p.scale * silu(gates[i]) : p.scale;
            }
        }
#if VIMDEPLOY_MUTANT == 9
        for (int32_t i = 0; i < kWIDTH; ++i)
        {
            sums[i] = toFloat<T>(fromFloat<T>(sums[i]));
        }
#endif
        if (visit.finishes && p.gated)
        {
            storeCells<T, kWIDTH>(static_cast<T*>(y) + offset, sums);
        }
        else
        {
            storeCells<float, kWIDTH>((visit.finishes ? static_cast<float*>(y) : partial) + offset, sums);
        }
    }
};

template <typename T, int kWIDTH, bool kTWO_PARTS>
__device__ __forceinline__ void finishCells(
    Params const& p, Visit const& visit, int32_t first, int32_t channels, float* partial, T const* z, void* y)
{
    int32_t const cells = visit.tile.count * (channels / kWIDTH);
#pragma unroll 1
    for (int32_t i = visit.thread; i < cells; i += 2 * visit.threads)
    {
        Cell<T, kWIDTH, kTWO_PARTS> one;
        Cell<T, kWIDTH, kTWO_PARTS> two;
        one.load(p, visit, i, first, channels, partial, z);
        two.load(p, visit, i + visit.threads, first, channels, partial, z);
        one.finish(p, visit, partial, y);
        two.finish(p, visit, partial, y);
    }
}

//! \param first the block's first channel
//! \param sample the batch entry
template <typename T, bool kTWO_PARTS>
__device__ __forceinline__ void finishTile(
    Params const& p, Visit const& visit, int64_t sample, int32_t first, int32_t channels)
{
    int64_t const start = sample * p.length * p.channels;
    float* partial = p.partial + start;
    T const* z = static_cast<T const*>(p.z) + start;
    void* y = p.gated ? static_cast<void*>(static_cast<T*>(p.y) + start)
                      : static_cast<void*>(static_cast<float*>(p.y) + start);
    if (p.vectorized)
    {
        finishCells<T, 4, kTWO_PARTS>(p, visit, first, channels, partial, z, y);
    }
    else
    {
        finishCells<T, 1, kTWO_PARTS>(p, visit, first, channels, partial, z, y);
    }
}

} // namespace scan
} // namespace vimdeploy
