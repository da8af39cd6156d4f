//! \file layout.h
//! The shared-memory layout that host and device must agree on. Plain C++: the host plans with it without CUDA.
#pragma once

#include "kernels/common/types.h"

#if defined(__CUDACC__)
#define VIMDEPLOY_HOST_DEVICE __host__ __device__
#else
#define VIMDEPLOY_HOST_DEVICE
#endif

namespace vimdeploy
{
namespace scan
{

//! Threads that walk one direction; a block has one or two such sides.
constexpr int32_t kSIDE_THREADS = 64;
constexpr int32_t kMAX_SIDES = 2;
//! States per thread of the generic kernel.
constexpr int32_t kGENERIC_STATES = 8;

//! Tokens of one channel whose delta a thread computes at a time; a tile's room is a multiple of it. Eight would load
//! each weight half as often (3 issue slots per token and channel at R = 12) and spill registers of the 16-state form.
constexpr int32_t kDELTA_RUN = 4;

//! Byte offsets of one side's shared memory. Every part starts on 16 bytes.
//!     rows     float   (tile, rowFloats)   dt_low | B | C of a token, padded so that each starts on 16 bytes
//!     slots    float2  (tile, channels)    in: delta, u. out: the token's sum, in one or two parts
//!     weights  T       (rank / 4, channels, 4)
//!     biases   float   (channels)
//!     rawU     T       (tile, channels + 16 bytes)   the next tile, copied while this one is scanned; without the
//!                                          padding all rows of a tensor-core tile would lie in the same banks
//!     rawX     T       (tile, rank + 2 * states)
//!     rawDelta T       as rawU, with delta given
struct SharedLayout
{
    int32_t rankPadded;
    int32_t statesPadded;
    int32_t rowFloats;
    int32_t slots;
    int32_t weights;
    int32_t biases;
    int32_t rawU;
    int32_t rawURow; //!< elements from one row of rawU to the next
    int32_t rawX;
    int32_t rawDelta;
    int32_t bytes;
};

VIMDEPLOY_HOST_DEVICE constexpr int32_t roundUp(int32_t value, int32_t step)
{
    return (value + step - 1) / step * step;
}

//! \param rank 0 with delta given
//! \param statesPerThread, lanes N is padded with zeros to their product
VIMDEPLOY_HOST_DEVICE inline SharedLayout sharedLayout(int32_t rank, int32_t states, int32_t statesPerThread,
    int32_t lanes, int32_t tileLength, int32_t elementBytes, bool stagedWeights, bool givenDelta)
{
    int32_t const channels = kSIDE_THREADS / lanes;
    SharedLayout layout{};
    layout.rankPadded = roundUp(rank, 4);
    layout.statesPadded = statesPerThread * lanes;
    layout.rowFloats = roundUp(layout.rankPadded + 2 * layout.statesPadded, 4);
    layout.slots = tileLength * layout.rowFloats * 4;
    layout.weights = layout.slots + tileLength * channels * 8;
    layout.biases = layout.weights + (stagedWeights ? layout.rankPadded * channels * elementBytes : 0);
    layout.rawU = layout.biases + channels * 4;
    layout.rawURow = channels + 16 / elementBytes;
    layout.rawX = layout.rawU + tileLength * layout.rawURow * elementBytes;
    layout.rawDelta = layout.rawX + roundUp(tileLength * (rank + 2 * states) * elementBytes, 16);
    layout.bytes = layout.rawDelta + (givenDelta ? tileLength * layout.rawURow * elementBytes : 0);
    return layout;
}

} // namespace scan
} // namespace vimdeploy
