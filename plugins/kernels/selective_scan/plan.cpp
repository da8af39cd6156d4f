//! \file selective_scan/plan.cpp
//! Chooses how to run a problem. Plain C++, no CUDA call.
//!
//! The choice, from w(S) = warps in flight with S states per thread = sides * B * E * (N / S) / 32, where a side is one
//! direction of a launch, and m = 6 * SMs, one and a half warps per scheduler:
//!
//!     N       when                                variant      why
//!     16      w(16) >= m                          kTHREAD_16   5 to 6 issue slots per element, the least of all
//!     16      else w(8) >= m                      kTHREAD_8    B and C read by half as many states: about 8 slots
//!     16      else w(4) >= m, or L < 256          kTHREAD_4    about 10 slots, but four times the warps
//!     16      else                                kCHUNKED     few channels, long sequence: exponentials twice, on
//!                                                              as many warps as the device holds
//!     8       w(8) >= m                           kTHREAD_8
//!     8       else w(4) >= m, or L < 256          kTHREAD_4
//!     8       else                                kCHUNKED
//!     1       w(1) >= m, or L < 256               kTHREAD_1
//!     other   as 1, with kGENERIC                 kGENERIC     8 states per thread, N padded to a power of two of them
//!     1, other: else                              kCHUNKED
//!
//! Fewer threads than m leave schedulers idle while exponentials (a quarter of the issue rate) bound the rest; 256
//! tokens is where a second launch and a second exponential are repaid. TensorRT times every variant as a tactic and
//! may know better; PyTorch takes this table.

#include "launch.h"
#include "layout.h"
#include "passes.h"

#include <algorithm>

namespace vimdeploy
{
namespace
{

//! Tokens of a tile. The tensor cores multiply 16 at a time: a shorter tile leaves rows of every product unused, a longer
//! one holds memory that further blocks could have.
constexpr int32_t kTILE = 16;
//! Blocks per SM that hide each other's latencies: four warps per scheduler, what registers allow, too.
constexpr int64_t kENOUGH_BLOCKS = 4;
//! Shared memory a block aims at where not even kENOUGH_BLOCKS fit: three blocks of Vim-Ti's on a 100 KiB SM.
constexpr int64_t kSHARED_TARGET = 33 * 1024;
//! What the driver keeps of an SM's shared memory for every block.
constexpr int64_t kRESERVED_SHARED = 1024;
constexpr int64_t kSHORT_LENGTH = 256;
constexpr int64_t kMIN_CHUNK = 32;
constexpr int64_t kMAX_CHUNKS = 64;
//! Blocks per SM that a chunked launch aims at: twelve warps, three per scheduler.
constexpr int64_t kCHUNK_BLOCKS_PER_SM = 3;

//! \return states per thread, 0 where the variant cannot run N states.
int32_t statesPerThread(ScanVariant variant, int32_t states) noexcept
{
    switch (variant)
    {
    case ScanVariant::kTHREAD_16: return states == 16 ? 16 : 0;
    case ScanVariant::kTHREAD_8: return states == 8 || states == 16 ? 8 : 0;
    case ScanVariant::kTHREAD_4: return states == 8 || states == 16 ? 4 : 0;
    case ScanVariant::kTHREAD_1: return states == 1 ? 1 : 0;
    case ScanVariant::kGENERIC: return scan::kGENERIC_STATES;
    case ScanVariant::kCHUNKED: return states == 1 || states == 8 || states == 16 ? states : scan::kGENERIC_STATES;
    case ScanVariant::kNONE: break;
    }
    return 0;
}

int64_t divideUp(int64_t value, int64_t by) noexcept
{
    return (value + by - 1) / by;
}

int64_t alignUp(int64_t bytes) noexcept
{
    return divideUp(bytes, 256) * 256;
}

int64_t chunkTarget(int64_t channelBlocks, int32_t smCount) noexcept
{
    return divideUp(kCHUNK_BLOCKS_PER_SM * std::max(smCount, 1), channelBlocks);
}

} // namespace

namespace scan
{

bool isGeneric(ScanVariant variant, int32_t states) noexcept
{
    return variant == ScanVariant::kGENERIC
        || (variant == ScanVariant::kCHUNKED && states != 1 && states != 8 && states != 16);
}

Threads threadsOf(ScanVariant variant, int32_t states) noexcept
{
    Threads threads;
    threads.statesPerThread = vimdeploy::statesPerThread(variant, states);
    while (threads.lanes * threads.statesPerThread < states)
    {
        threads.lanes *= 2;
    }
    threads.generic = isGeneric(variant, states);
    return threads;
}

int32_t channelBlocksOf(ScanShape const& shape, int32_t lanes) noexcept
{
    int32_t const groups = shape.givenDelta ? shape.channelGroups : 1;
    return groups * static_cast<int32_t>(divideUp(shape.channels / groups, kSIDE_THREADS / lanes));
}

Passes makePasses(ScanShape const& shape) noexcept
{
    Passes passes;
    bool taken[kMAX_GROUPS]{};
    auto const pairUp = [&](bool wantEqual, bool alone)
    {
        for (int32_t i = 0; i < shape.groups; ++i)
        {
            for (int32_t j = i + 1; j < shape.groups && !taken[i] && !alone; ++j)
            {
                bool const equal = shape.directions[i] == shape.directions[j];
                bool const sameWalk = shape.columnMajor[i] == shape.columnMajor[j];
                if (!taken[j] && sameWalk && equal == wantEqual)
                {
                    taken[i] = taken[j] = true;
                    passes.pass[passes.count++] = Pass{2, {i, j}};
                }
            }
            if (alone && !taken[i])
            {
                taken[i] = true;
                passes.pass[passes.count++] = Pass{1, {i, i}};
            }
        }
    };
    pairUp(true, false);
    pairUp(false, false);
    pairUp(false, true);
    return passes;
}

bool needsPartial(ScanShape const& shape) noexcept
{
    if (!shape.gated || shape.type == DType::kFLOAT32)
    {
        return false; // y is float32 and holds the sums itself
    }
    Passes const passes = makePasses(shape);
    return passes.count > 1 || passes.pass[0].opposite(shape);
}

int64_t partialBytes(ScanShape const& shape) noexcept
{
    return needsPartial(shape) ? alignUp(shape.batch * shape.length * shape.channels * 4) : 0;
}

int64_t chunkStateBytes(ScanShape const& shape, int64_t pieces) noexcept
{
    return alignUp(kMAX_SIDES * pieces * shape.channels * shape.states * 4);
}

int64_t chunkDeltaBytes(ScanShape const& shape, int64_t pieces) noexcept
{
    return alignUp(kMAX_SIDES * pieces * shape.channels * 4);
}

} // namespace scan

int32_t scanVariants(ScanShape const& shape, ScanVariant variants[kSCAN_VARIANT_COUNT]) noexcept
{
    int32_t count = 0;
    for (ScanVariant const variant :
        {ScanVariant::kTHREAD_16, ScanVariant::kTHREAD_8, ScanVariant::kTHREAD_4, ScanVariant::kTHREAD_1})
    {
        if (statesPerThread(variant, shape.states) != 0)
        {
            variants[count++] = variant;
        }
    }
    if (count == 0)
    {
        variants[count++] = ScanVariant::kGENERIC;
    }
    variants[count++] = ScanVariant::kCHUNKED;
    return count;
}

ScanPlan planScanVariant(ScanShape const& shape, ScanVariant variant, ScanDevice const& device) noexcept
{
    ScanPlan plan;
    if (statesPerThread(variant, shape.states) == 0)
    {
        return plan;
    }
    scan::Threads const threads = scan::threadsOf(variant, shape.states);
    int32_t const sides = scan::makePasses(shape).widest();
    constexpr int32_t kRUN = scan::kDELTA_RUN;
    auto const bytesOf = [&](int32_t tile, bool staged)
    {
        return int64_t{sides}
        * scan::sharedLayout(shape.rank, shape.states, threads.statesPerThread, threads.lanes, tile,
            static_cast<int32_t>(sizeOf(shape.type)), staged, shape.givenDelta)
              .bytes;
    };
    constexpr auto kLIMIT = static_cast<int64_t>(kMAX_SHARED_BYTES);
    int64_t const roomy = std::min(kLIMIT, device.sharedPerSm / kENOUGH_BLOCKS - kRESERVED_SHARED);
    auto const longest = [&](bool staged)
    {
        int32_t tile = 2 * kTILE;
        auto const isTooLarge = [&]
        {
            int64_t const bytes = bytesOf(tile, staged);
            return bytes > (tile > kTILE ? kSHARED_TARGET : std::max(roomy, kSHARED_TARGET));
        };
        while (tile > kRUN && (isTooLarge() || tile / 2 >= shape.length))
        {
            tile /= 2;
        }
        return tile;
    };
    plan.stagedWeights = bytesOf(kRUN, true) <= kLIMIT;
    plan.tileLength = longest(plan.stagedWeights);
    plan.sharedBytes = bytesOf(plan.tileLength, plan.stagedWeights);
    if (plan.sharedBytes > kLIMIT)
    {
        return ScanPlan{};
    }
    plan.variant = variant;
    plan.chunkLength = divideUp(shape.length, plan.tileLength) * plan.tileLength;
    if (variant == ScanVariant::kCHUNKED && shape.batch > 0)
    {
        int64_t const channelBlocks = scan::channelBlocksOf(shape, threads.lanes);
        int64_t const wanted = divideUp(chunkTarget(channelBlocks, device.smCount), shape.batch);
        int64_t const chunks = std::clamp<int64_t>(std::min(wanted, shape.length / kMIN_CHUNK), 1, kMAX_CHUNKS);
        plan.chunkLength = divideUp(divideUp(shape.length, chunks), plan.tileLength) * plan.tileLength;
        plan.chunks = static_cast<int32_t>(divideUp(shape.length, plan.chunkLength));
    }
    return plan;
}

ScanPlan planScan(ScanShape const& shape, ScanDevice const& device) noexcept
{
    ScanVariant variants[kSCAN_VARIANT_COUNT];
    int32_t const count = scanVariants(shape, variants);
    int64_t const sides = scan::makePasses(shape).widest();
    int64_t const enough = int64_t{6} * device.smCount;
    ScanVariant choice = shape.length < kSHORT_LENGTH ? variants[count - 2] : ScanVariant::kCHUNKED;
    for (int32_t i = count - 2; i >= 0; --i)
    {
        int64_t const lanes = scan::threadsOf(variants[i], shape.states).lanes;
        if (sides * shape.batch * shape.channels * lanes / 32 >= enough)
        {
            choice = variants[i]; // the widest that fills the device: variants are listed widest first
        }
    }
    return planScanVariant(shape, choice, device);
}

std::size_t scanWorkspaceSize(ScanShape const& shape, ScanVariant variant, int32_t smCount) noexcept
{
    int64_t bytes = scan::partialBytes(shape);
    if (variant == ScanVariant::kCHUNKED)
    {
        scan::Threads const threads = scan::threadsOf(variant, shape.states);
        int64_t const channelBlocks = scan::channelBlocksOf(shape, threads.lanes);
        // batch * chunks stays below target + batch, which grows with the batch and with nothing else.
        int64_t const pieces = chunkTarget(channelBlocks, smCount) + shape.batch;
        bytes += scan::chunkStateBytes(shape, pieces) + scan::chunkDeltaBytes(shape, pieces);
    }
    return static_cast<std::size_t>(bytes);
}

std::size_t planWorkspaceSize(ScanShape const& shape, ScanPlan const& plan) noexcept
{
    int64_t bytes = scan::partialBytes(shape);
    if (plan.chunks > 1)
    {
        int64_t const pieces = shape.batch * plan.chunks;
        bytes += scan::chunkStateBytes(shape, pieces) + scan::chunkDeltaBytes(shape, pieces);
    }
    return static_cast<std::size_t>(bytes);
}

} // namespace vimdeploy
