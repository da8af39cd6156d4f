//! \file selective_scan/kernel.cuh
//! The fused selective scan: dt projection, softplus, scan, D skip, sum over directions, gate and scale in one launch.
//!
//! Mathematics, for each group g of a launch, sample b, channel e and state n, along the walk's order (or against it):
//!     delta[t] = softplus(x_dbl[t, :R] . dt_weight[e] + dt_bias[e])
//!     h[t, n]  = exp(delta[t] * A[e, n]) * h[t - 1, n] + delta[t] * u[t] * B[t, n]
//!     y[t]     = scale * silu(z[t]) * sum_g (sum_n h[t, n] * C[t, n] + D[e] * u[t])
//! or, with delta given (one group per channel, no projection): delta[t] = softplus(delta[t, e] + dt_bias[e]).
//! State and sums are float32. exp is one ex2 of delta * (A * log2 e).
//!
//! Launch shape. A block is one (sample, block of channels, chunk of L) and has one or two sides of 64 threads, each
//! walking one group. A side serves 64 / lanes channels, `lanes` neighbouring threads sharing a channel's states.
//!     grid.x = channel blocks * chunks * batch (channels fastest: neighbours read the same x_dbl rows from L2)
//!
//! Both directions in one launch, "meet in the middle". Two sides of opposite direction work on mirrored tiles at the
//! same time. Before the middle each visits its tiles first and leaves float32 sums in `partial`; past the middle each
//! comes second, adds the partial, gates, scales, rounds once and stores. A middle tile of an odd count is reached by
//! both in the same step and summed in shared memory. Two sides of equal direction meet on every tile.
//! No atomics: the sides of a block are ordered by its barriers, and no other block touches its tokens and channels.
//!
//! Per tile: (1) barrier, the raw tile has arrived; convert x_dbl to float32 rows. (2) barrier; delta and u of every
//! (token, channel) into slots. (3) barrier; start copying the next tile; scan this one, sums into the slots.
//! (4) barrier; epilogue. B and C are broadcast reads of 16 bytes, a quarter of a load per state.
//!
//! Chunked over L, two launches. The first (kSTATES_ONLY) scans each chunk from 0 and leaves its last state and the sum
//! of delta: the decay over the whole chunk is exp(A * sum). The second starts each chunk from
//! h = exp(A * sum[k]) * h + state[k] over the chunks before it, and scans. Exponents are never positive for A <= 0.
#pragma once

#include "chunks.cuh"
#include "delta.cuh"
#include "epilogue.cuh"
#include "recurrence.cuh"

namespace vimdeploy
{
namespace scan
{

//! Blocks per SM that registers must allow: 128 registers a thread, four warps per scheduler, nothing spilled.
constexpr int32_t kMIN_BLOCKS = 4;

//! Where one side of a block stands.
template <typename T>
struct Side
{
    int32_t index;
    int32_t group;
    int32_t direction;
    int32_t thread;
    float* rows;
    float2* slots;
    T* weights;
    float* biases;
    T* rawU;
    T* rawX;
    T* rawDelta; //!< this, delta and c with delta given
    T const* u;  //!< the sample's first row
    T const* x;  //!< the sample's first row; with delta given, of B
    T const* c;
    T const* delta;
    T const* dtRows; //!< the group's first row of dt_weight
};

template <typename T>
__device__ __forceinline__ Side<T> makeSide(Params const& p, SharedLayout const& layout, unsigned char* shared,
    int32_t index, int32_t thread, int64_t sample, int32_t channelGroup)
{
    unsigned char* base = shared + index * layout.bytes;
    Side<T> side;
    side.index = index;
    side.group = p.group[index];
    side.direction = p.direction[index];
    side.thread = thread;
    side.rows = reinterpret_cast<float*>(base);
    side.slots = reinterpret_cast<float2*>(base + layout.slots);
    side.weights = reinterpret_cast<T*>(base + layout.weights);
    side.biases = reinterpret_cast<float*>(base + layout.biases);
    side.rawU = reinterpret_cast<T*>(base + layout.rawU);
    side.rawX = reinterpret_cast<T*>(base + layout.rawX);
    side.u = static_cast<T const*>(p.u) + side.group * p.uGroupStride + sample * p.length * p.channels;
    side.rawDelta = reinterpret_cast<T*>(base + layout.rawDelta);
    // Rows of x_dbl, or of B and C, whose tokens hold one row per group of channels.
    int64_t const pairOffset
        = (sample * p.length * (p.channels / p.groupChannels) + channelGroup) * static_cast<int64_t>(p.states);
    side.x = static_cast<T const*>(p.xDbl)
        + (p.givenDelta ? pairOffset : side.group * p.xDblGroupStride + sample * p.length * (p.rank + 2 * p.states));
    side.c = static_cast<T const*>(p.C) + (p.givenDelta ? pairOffset : 0);
    side.delta = static_cast<T const*>(p.delta) + (p.givenDelta ? sample * p.length * p.channels : 0);
    side.dtRows = static_cast<T const*>(p.dtWeight) + static_cast<int64_t>(side.group) * p.channels * p.rank;
    return side;
}

//! Starts copying everything of a tile.
template <typename T>
__device__ __forceinline__ void stageTile(
    Params const& p, Side<T> const& side, Tile tile, int32_t first, int32_t limit, int32_t channels, int32_t thread)
{
    if (p.givenDelta)
    {
        int64_t const stride = static_cast<int64_t>(p.channels / p.groupChannels) * p.states;
        stagePair<T>(p, side.rawX, side.x, side.c, stride, tile, thread);
        stageU<T>(p, side.rawDelta, side.delta, tile, first, limit, channels, thread);
    }
    else
    {
        stageX<T>(p, side.rawX, side.x, tile, thread);
    }
    stageU<T>(p, side.rawU, side.u, tile, first, limit, channels, thread);
}

//! The tile a direction works on in a step: sides of opposite direction stand on mirrored ones.
__device__ __forceinline__ Tile tileOf(
    Params const& p, int32_t direction, int32_t begin, int32_t end, int32_t tiles, int32_t step)
{
    int32_t const index = direction > 0 ? step : tiles - 1 - step;
    Tile tile;
    tile.first = begin + index * p.tileLength;
    tile.count = min(p.tileLength, end - tile.first);
    return tile;
}

//! \tparam kN number of states, 0 for the generic kernel (padded to kSTATES times a power of two)
//! \tparam kSTATES states per thread
template <typename T, int kN, int kSTATES, bool kSTATES_ONLY>
__global__ void __launch_bounds__(kSIDE_THREADS* kMAX_SIDES, kMIN_BLOCKS) scanKernel(Params const p)
{
    VIMDEPLOY_DYNAMIC_SHARED(shared);
    constexpr bool kTWO_PARTS = kN != kSTATES;
    int32_t const lanes = kN != 0 ? kN / kSTATES : p.lanes;
    int32_t const states = kN != 0 ? kN : p.states;
    int32_t const channels = kSIDE_THREADS / lanes;
    int32_t const thread = static_cast<int32_t>(threadIdx.x);

    int32_t const blockRest = static_cast<int32_t>(blockIdx.x) / p.channelBlocks;
    int32_t const channelBlock = static_cast<int32_t>(blockIdx.x) - blockRest * p.channelBlocks;
    int32_t const channelGroup = channelBlock / p.groupBlocks; // 0 but with delta given
    int32_t const first = channelGroup * p.groupChannels + (channelBlock - channelGroup * p.groupBlocks) * channels;
    int32_t const limit = (channelGroup + 1) * p.groupChannels;
    int32_t const chunk = blockRest % p.chunks;
    int64_t const sample = blockRest / p.chunks;
    int32_t const begin = chunk * p.chunkLength;
    int32_t const end = min(p.length, begin + p.chunkLength);
    int32_t const tiles = (end - begin + p.tileLength - 1) / p.tileLength;

    SharedLayout const layout
        = sharedLayout(p.rank, states, kSTATES, lanes, p.tileLength, sizeof(T), p.stagedWeights, p.givenDelta);
    Side<T> const side
        = makeSide<T>(p, layout, shared, static_cast<int32_t>(threadIdx.y), thread, sample, channelGroup);
    bool const flat = layout.rowFloats == p.rank + 2 * states;

    // This thread's share: `lanes` neighbouring threads hold the states of one channel.
    int32_t const lane = thread & (lanes - 1);
    int32_t const local = thread / lanes;
    int32_t const channel = first + local;
    int32_t const firstState = lane * kSTATES;
    bool const exists = channel < limit;
    State<kSTATES> state;
    int64_t const parameterRow = static_cast<int64_t>(side.group) * p.channels + channel;
#pragma unroll
    for (int32_t n = 0; n < kSTATES; ++n)
    {
        bool const real = exists && (kN != 0 || firstState + n < states);
        state.rate[n] = real ? kLOG2_E * p.A[parameterRow * states + firstState + n] : 0.0F;
        state.h[n] = 0.0F;
    }
    state.skip = exists && lane == 0 ? p.D[parameterRow] : 0.0F;
    state.deltaSum = 0.0F;
    if (!kSTATES_ONLY && p.chunks > 1 && exists)
    {
        startState<kSTATES, kN == 0>(p, state, side.index, side.direction, sample, chunk, channel, firstState);
    }

    if (thread < channels)
    {
        bool const inside = first + thread < limit;
        side.biases[thread] = inside ? p.dtBias[static_cast<int64_t>(side.group) * p.channels + first + thread] : 0.0F;
    }
    if (p.stagedWeights)
    {
        stageWeights<T>(p, layout, side.weights, side.dtRows, first, channels, thread);
    }
    Tile tile = tileOf(p, side.direction, begin, end, tiles, 0);
    stageTile<T>(p, side, tile, first, limit, channels, thread);

#pragma unroll 1
    for (int32_t step = 0; step < tiles; ++step)
    {
        int32_t const self = opaque(thread);
        asyncCopyWait();
        __syncthreads(); // the raw tile is there, and nobody reads the last tile's rows and slots any more
        convertRows<T>(p, layout, side.rows, side.rawX, tile.count, self, flat);
        bool const tensor = kTENSOR_CORES<T> && p.tensorDelta;
        if (p.givenDelta)
        {
            takeDelta<T>(p, layout, side.slots, side.rawDelta, side.rawU, side.biases, tile.count, channels, self);
        }
        else if (tensor) // reads the raw tile, not the rows
        {
            if constexpr (kTENSOR_CORES<T>)
            {
                constexpr int32_t kTILES = kN != 0 && kN <= 2 * kSTATES ? 2 : 1;
                computeDeltaTensor<T, kTILES>(
                    p, side.slots, side.rawX, side.rawU, side.weights, side.biases, tile.count, channels, self);
            }
        }
        else
        {
            __syncthreads(); // rows are complete
            computeDelta<T>(p, layout, side.slots, side.rows, side.rawU, side.weights, side.dtRows, side.biases,
                tile.count, first, channels, self);
        }
        __syncthreads(); // rows and slots are complete, the raw tile is free
        Tile next = tile;
        if (step + 1 < tiles)
        {
            next = tileOf(p, side.direction, begin, end, tiles, step + 1);
            stageTile<T>(p, side, next, first, limit, channels, self);
        }
        bool const forward = side.direction > 0;
        int32_t const start = forward ? 0 : tile.count - 1;
        int32_t const rowStart = start;
        Walk walk;
        walk.slot = side.slots + start * channels + local;
        walk.row = side.rows + rowStart * layout.rowFloats + layout.rankPadded + firstState;
        walk.slotStep = forward ? channels : -channels;
        walk.rowStep = forward ? layout.rowFloats : -layout.rowFloats;
        walk.offsetC = layout.statesPadded;
        walk.count = tile.count;
        walk.lanes = lanes;
        walk.lane = kTWO_PARTS ? lane : self & 31;
        if constexpr (kN != 0 && kTWO_PARTS && !kSTATES_ONLY)
        {
            scanTileShared<kSTATES>(state, walk);
        }
        else
        {
            scanTile<kSTATES, kSTATES_ONLY, kTWO_PARTS>(state, walk);
        }
        if constexpr (!kSTATES_ONLY)
        {
            __syncthreads(); // the sums of both sides are complete
            bool const twoSides = blockDim.y > 1U;
            int32_t const mirror = tiles - 1 - step;
            bool const opposite = twoSides && p.direction[0] != p.direction[1];
            bool const together = twoSides && (!opposite || step == mirror);
            bool const last = !opposite || step >= mirror;
            Visit visit;
            visit.tile = tile;
            visit.slots = side.slots;
            visit.otherSlots = together
                ? reinterpret_cast<float2 const*>(shared + (1 - side.index) * layout.bytes + layout.slots)
                : nullptr;
            visit.limit = limit;
            visit.thread = together ? side.index * kSIDE_THREADS + self : self;
            visit.threads = together ? kSIDE_THREADS * kMAX_SIDES : kSIDE_THREADS;
            visit.addsPartial = p.sumsBefore || (opposite && step > mirror);
            visit.finishes = p.finishes && last;
            finishTile<T, kTWO_PARTS>(p, visit, sample, first, channels);
        }
        tile = next;
    }
    if (kSTATES_ONLY && exists)
    {
        leaveState<kSTATES, kN == 0>(p, state, side.index, sample, chunk, channel, firstState);
    }
}

} // namespace scan
} // namespace vimdeploy
