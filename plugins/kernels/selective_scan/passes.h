//! \file passes.h
//! How the groups of a problem become launches: at most two groups, over the same walk, per launch.
//!
//! Directions and walks of the known models, and the traffic beside reading u, x_dbl and z and writing y once per
//! launch or once in all (float32, per token and channel; y itself holds the sums where y is float32):
//!     Mamba   [1]                            1 launch, one side           no partial
//!     Vim     [1, -1]                        1 launch, two sides          4 B written, 4 B read
//!     v051d   [1, 1, 1, 1]                   2 launches of equal sides    4 B written, 4 B read
//!     v052d   [1, 1, -1, -1]                 2 launches of equal sides    4 B written, 4 B read
//!     VMamba  [1, 1, -1, -1], walks [0, 1, 0, 1]: 2 launches, the row walk then the column walk, each meeting in the
//!             middle: 12 B written, 12 B read. u is read twice per launch; no token is transposed in memory.
//! Equal directions are paired first: they meet on every tile and leave nothing behind inside a launch.
#pragma once

#include "launch.h"

namespace vimdeploy
{
namespace scan
{

struct Pass
{
    int32_t sides{0};
    int32_t group[2]{0, 0};

    bool opposite(ScanShape const& shape) const noexcept
    {
        return sides == 2 && shape.directions[group[0]] != shape.directions[group[1]];
    }
};

struct Passes
{
    int32_t count{0};
    Pass pass[kMAX_GROUPS];

    int32_t widest() const noexcept
    {
        int32_t sides = 1;
        for (int32_t i = 0; i < count; ++i)
        {
            sides = pass[i].sides > sides ? pass[i].sides : sides;
        }
        return sides;
    }
};

//! `shape` must have passed checkScanShape.
Passes makePasses(ScanShape const& shape) noexcept;

//! How a variant spreads N states over threads.
struct Threads
{
    int32_t statesPerThread{0};
    int32_t lanes{1}; //!< threads per channel
    bool generic{false};
};

//! Blocks that the channels are cut into, and how many of them one group of channels takes: none straddles two groups.
int32_t channelBlocksOf(ScanShape const& shape, int32_t lanes) noexcept;

Threads threadsOf(ScanVariant variant, int32_t states) noexcept;

//! Whether sums must wait outside y between visits of a token: several visits, and a y that is not float32.
bool needsPartial(ScanShape const& shape) noexcept;

//! Bytes, rounded up to the alignment of a workspace's parts, of: the float32 sums; the states, and the delta sums, of
//! `pieces` = batch * chunks chunks for both sides of a launch. The workspace holds them in this order.
int64_t partialBytes(ScanShape const& shape) noexcept;
int64_t chunkStateBytes(ScanShape const& shape, int64_t pieces) noexcept;
int64_t chunkDeltaBytes(ScanShape const& shape, int64_t pieces) noexcept;

} // namespace scan
} // namespace vimdeploy
