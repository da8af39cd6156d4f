//! \file selective_scan/check.cpp
//! What is refused, and in which words: a shape that the kernels do not serve, a launch that would not be safe.

#include "launch.h"
#include "layout.h"
#include "passes.h"

#include <algorithm>
#include <cstdio>

namespace vimdeploy
{
namespace
{

constexpr int64_t kMAX_GRID = INT32_MAX;
//! The kernels count tokens in 32 bits: below it every chunk, rounded up to whole tiles, still ends.
constexpr int64_t kMAX_LENGTH = INT32_MAX - 64 * 64;
//! More bytes than any tensor or workspace has: below it no product of sizes leaves 64 bits.
constexpr double kMAX_BYTES = 1152921504606846976.0; // 2^60

char const* say(char* message, std::size_t size, char const* format, char const* field, long long value) noexcept
{
    std::snprintf(message, size, format, field, value);
    return message;
}

} // namespace

char const* checkScanShape(ScanShape const& shape, char* message, std::size_t size) noexcept
{
    auto const wrong = [&](char const* format, char const* field, int64_t value)
    { return say(message, size, format, field, static_cast<long long>(value)); };
    if (sizeOf(shape.type) == 0)
    {
        return wrong("%s is %lld; float32 (0), float16 (1) and bfloat16 (2) are served", "type",
            static_cast<int64_t>(shape.type));
    }
    if (shape.batch < 0 || shape.batch > kMAX_GRID)
    {
        return wrong("%s is %lld; at least 0 is needed and at most 2147483647 served", "batch", shape.batch);
    }
    if (shape.length < 1 || shape.length > kMAX_LENGTH)
    {
        return wrong("%s is %lld; 1 to 2147479551 tokens are served", "length", shape.length);
    }
    if (shape.channels < 1 || shape.channels > (1 << 24))
    {
        return wrong("%s is %lld; 1 to 16777216 are served", "channels", shape.channels);
    }
    if (shape.states < 1 || shape.states > kMAX_STATES)
    {
        return wrong("%s (d_state) is %lld; 1 to 64 are served", "states", shape.states);
    }
    if (shape.givenDelta
        && (shape.rank != 0 || shape.groups != 1 || shape.columnMajor[0] != 0 || shape.sharedU || shape.sharedXDbl))
    {
        return wrong("%s is %lld; with delta given there is no projection, one scan and one walk", "rank", shape.rank);
    }
    if (shape.givenDelta && (shape.channelGroups < 1 || shape.channels % shape.channelGroups != 0))
    {
        return wrong("%s is %lld; with delta given it divides the channels", "channel groups", shape.channelGroups);
    }
    if (!shape.givenDelta && (shape.rank < 1 || shape.rank > kMAX_RANK))
    {
        return wrong("%s (dt_rank) is %lld; 1 to 128 are served", "rank", shape.rank);
    }
    if (shape.groups != 1 && shape.groups != 2 && shape.groups != 4)
    {
        return wrong("%s is %lld; 1, 2 and 4 are served", "groups", shape.groups);
    }
    bool anyColumn = false;
    for (int32_t g = 0; g < shape.groups; ++g)
    {
        if (shape.directions[g] != 1 && shape.directions[g] != -1)
        {
            return wrong(
                "an entry of %s is %lld; 1 (forward) or -1 (backward) is expected", "directions", shape.directions[g]);
        }
        if (shape.columnMajor[g] != 0 && shape.columnMajor[g] != 1)
        {
            return wrong("an entry of %s is %lld; 0 or 1 is expected", "column_major", shape.columnMajor[g]);
        }
        anyColumn = anyColumn || shape.columnMajor[g] == 1;
    }
    if (anyColumn && (shape.height < 1 || shape.length % shape.height != 0))
    {
        return wrong("%s is %lld; a column-major group needs a height that divides the length", "height", shape.height);
    }
    int64_t const blocks = shape.batch * scan::channelBlocksOf(shape, scan::kSIDE_THREADS / 8);
    if (blocks > kMAX_GRID)
    {
        return wrong("%s times channels / 8 is %lld; at most 2147483647 blocks are served", "batch", blocks);
    }
    double const widest = std::max(shape.channels, shape.rank + 2 * shape.states);
    double const tensorBytes
        = 4.0 * shape.groups * static_cast<double>(shape.batch) * static_cast<double>(shape.length) * widest;
    double const stateBytes = 8.0 * static_cast<double>(shape.batch) * shape.channels * shape.states;
    if (tensorBytes > kMAX_BYTES || stateBytes > kMAX_BYTES)
    {
        return wrong("%s times length and channels is more than 2^60 bytes at batch %lld", "batch", shape.batch);
    }
    return nullptr;
}

char const* checkScanLaunch(ScanShape const& shape, ScanPlan const& plan, ScanPointers const& pointers,
    Workspace const& workspace, char* message, std::size_t size) noexcept
{
    void const* const z = shape.gated ? pointers.z : pointers.y; // without a gate there is none to miss
    bool const isGiven = shape.givenDelta;
    if (isGiven
        && checkPointers({{"delta", pointers.delta}, {"B", pointers.B}, {"C", pointers.C}}, message, size) != nullptr)
    {
        return message;
    }
    if (!isGiven
        && checkPointers({{"x_dbl", pointers.xDbl}, {"dt_weight", pointers.dtWeight}}, message, size) != nullptr)
    {
        return message;
    }
    if (checkPointers({{"u", pointers.u}, {"A", pointers.A}, {"D", pointers.D}, {"dt_bias", pointers.dtBias},
                          {"y", pointers.y}, {"z", z}},
            message, size)
        != nullptr)
    {
        return message;
    }
    if (plan.variant == ScanVariant::kNONE || plan.tileLength <= 0 || plan.chunks < 1
        || plan.chunkLength % plan.tileLength != 0 || plan.chunkLength * plan.chunks < shape.length)
    {
        std::snprintf(message, size, "the plan (variant %d, %d chunks of %lld tokens) is not one for %lld tokens",
            static_cast<int>(plan.variant), static_cast<int>(plan.chunks), static_cast<long long>(plan.chunkLength),
            static_cast<long long>(shape.length));
        return message;
    }
    std::size_t const needed = planWorkspaceSize(shape, plan);
    std::size_t const given = workspace.data == nullptr ? 0 : workspace.bytes;
    if (given < needed)
    {
        std::snprintf(message, size, "the workspace has %llu bytes; variant %d with %d chunks needs %llu",
            static_cast<unsigned long long>(given), static_cast<int>(plan.variant), static_cast<int>(plan.chunks),
            static_cast<unsigned long long>(needed));
        return message;
    }
    return nullptr;
}

} // namespace vimdeploy
