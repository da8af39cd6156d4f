//! \file selective_scan/launch.cu
//! Turns a shape and a plan into launches. Host code only: capture-safe, no allocation, no synchronisation.

#include "launch.h"
#include "launch_typed.cuh"
#include "passes.h"

#include <algorithm>
#include <initializer_list>

namespace vimdeploy
{
namespace
{

bool isAligned(std::initializer_list<void const*> pointers)
{
    for (void const* pointer : pointers)
    {
        if (reinterpret_cast<std::uintptr_t>(pointer) % 16U != 0)
        {
            return false;
        }
    }
    return true;
}

//! The widest copy that divides a row of x_dbl and its address.
int32_t rowVectorBytes(void const* rows, int64_t rowBytes, int32_t elementBytes)
{
    int32_t bytes = 16;
    while (bytes > elementBytes && (rowBytes % bytes != 0 || reinterpret_cast<std::uintptr_t>(rows) % bytes != 0))
    {
        bytes /= 2;
    }
    return bytes;
}

//! What all launches of a problem share.
scan::Params commonParams(
    ScanShape const& shape, ScanPlan const& plan, ScanPointers const& pointers, unsigned char* workspace)
{
    scan::Threads const threads = scan::threadsOf(plan.variant, shape.states);
    auto const elementBytes = static_cast<int32_t>(sizeOf(shape.type));
    bool const given = shape.givenDelta;
    int32_t const rowWidth = shape.rank + 2 * shape.states;
    int64_t const pieces = shape.batch * plan.chunks;
    unsigned char* chunkState = workspace + scan::partialBytes(shape);
    scan::Params params{};
    params.u = pointers.u;
    params.xDbl = given ? pointers.B : pointers.xDbl;
    params.C = pointers.C;
    params.delta = pointers.delta;
    params.A = pointers.A;
    params.D = pointers.D;
    params.dtWeight = pointers.dtWeight;
    params.dtBias = pointers.dtBias;
    params.z = pointers.z;
    params.y = pointers.y;
    params.partial = static_cast<float*>(scan::needsPartial(shape) ? static_cast<void*>(workspace) : pointers.y);
    params.chunkState = reinterpret_cast<float*>(chunkState);
    params.chunkDelta = reinterpret_cast<float*>(chunkState + scan::chunkStateBytes(shape, pieces));
    params.uGroupStride = shape.sharedU ? 0 : shape.batch * shape.length * shape.channels;
    params.xDblGroupStride = shape.sharedXDbl ? 0 : shape.batch * shape.length * rowWidth;
    params.batch = shape.batch;
    params.length = static_cast<int32_t>(shape.length);
    params.chunkLength = static_cast<int32_t>(plan.chunkLength);
    params.chunks = plan.chunks;
    params.channels = shape.channels;
    params.channelBlocks = scan::channelBlocksOf(shape, threads.lanes);
    params.groupChannels = given ? shape.channels / shape.channelGroups : shape.channels;
    params.groupBlocks = given ? params.channelBlocks / shape.channelGroups : params.channelBlocks;
    params.states = shape.states;
    params.rank = shape.rank;
    params.tileLength = plan.tileLength;
    params.lanes = threads.lanes;
    params.scale = shape.scale;
    // With delta given a row is two of N elements, B's and C's.
    int64_t const pieceBytes = int64_t{given ? shape.states : rowWidth} * elementBytes;
    params.xVectorBytes = rowVectorBytes(params.xDbl, pieceBytes, elementBytes);
    if (given)
    {
        params.xVectorBytes = std::min(params.xVectorBytes, rowVectorBytes(pointers.C, pieceBytes, elementBytes));
    }
    params.xVectors = makeFastDivisor(static_cast<uint32_t>(rowWidth * elementBytes / params.xVectorBytes));
    scan::SharedLayout const layout = scan::sharedLayout(shape.rank, shape.states, threads.statesPerThread,
        threads.lanes, plan.tileLength, elementBytes, plan.stagedWeights, given);
    params.rowFloats = makeFastDivisor(static_cast<uint32_t>(layout.rowFloats));
    params.vectorized = int64_t{shape.channels} * elementBytes % 16 == 0
        && int64_t{params.groupChannels} * elementBytes % 16 == 0
        && isAligned({pointers.u, pointers.delta, pointers.z, pointers.y, params.partial});
    params.stagedWeights = plan.stagedWeights && !given;
    params.givenDelta = given;
    params.deltaSoftplus = shape.deltaSoftplus;
    // Pairs of dt_low are read as one word: the rows must be a whole number of words.
    params.tensorDelta = !given && plan.stagedWeights && elementBytes == 2 && shape.rank % 2 == 0;
    params.gated = shape.gated;
    return params;
}

cudaError_t launchPass(ScanShape const& shape, scan::LaunchConfig const& config, scan::Params const& params)
{
    switch (shape.type)
    {
#if !defined(VIMDEPLOY_ONLY_FLOAT16)
    case DType::kFLOAT32: return scan::launchTyped<float>(config, params);
    case DType::kBFLOAT16: return scan::launchTyped<__nv_bfloat16>(config, params);
#endif
    case DType::kFLOAT16: return scan::launchTyped<__half>(config, params);
    default: return cudaErrorInvalidValue;
    }
}

} // namespace

LaunchStatus launchScan(ScanShape const& shape, ScanPlan const& plan, ScanPointers const& pointers,
    Workspace const& workspace, cudaStream_t stream) noexcept
{
    LaunchStatus status;
    if (shape.batch == 0)
    {
        return status;
    }
    if (checkScanLaunch(shape, plan, pointers, workspace, status.refusal, sizeof(status.refusal)) != nullptr)
    {
        status.cuda = cudaErrorInvalidValue;
        return status;
    }
    scan::Threads const threads = scan::threadsOf(plan.variant, shape.states);
    scan::Params params = commonParams(shape, plan, pointers, static_cast<unsigned char*>(workspace.data));
    scan::Passes const passes = scan::makePasses(shape);
    scan::LaunchConfig config{};
    config.grid = dim3(static_cast<unsigned>(shape.batch * plan.chunks * params.channelBlocks));
    config.stream = stream;
    config.states = threads.generic ? 0 : shape.states;
    config.statesPerThread = threads.statesPerThread;
    for (int32_t i = 0; i < passes.count; ++i)
    {
        scan::Pass const& pass = passes.pass[i];
        for (int32_t side = 0; side < scan::kMAX_SIDES; ++side)
        {
            params.group[side] = pass.group[side];
            params.direction[side] = shape.directions[pass.group[side]];
        }
        params.columnMajor = shape.columnMajor[pass.group[0]] != 0;
        if (params.columnMajor)
        {
            params.gridWidth = static_cast<int32_t>(shape.length / shape.height);
            params.gridHeight = makeFastDivisor(static_cast<uint32_t>(shape.height));
        }
        params.sumsBefore = i > 0;
        params.finishes = i + 1 == passes.count;
        config.block = dim3(scan::kSIDE_THREADS, static_cast<unsigned>(pass.sides));
        config.sharedBytes = static_cast<std::size_t>(pass.sides)
            * static_cast<std::size_t>(
                scan::sharedLayout(shape.rank, shape.states, threads.statesPerThread, threads.lanes, plan.tileLength,
                    static_cast<int32_t>(sizeOf(shape.type)), plan.stagedWeights, shape.givenDelta)
                    .bytes);
        for (bool const statesOnly : {true, false})
        {
            if (statesOnly && plan.chunks == 1)
            {
                continue;
            }
            config.statesOnly = statesOnly;
            status.cuda = launchPass(shape, config, params);
            if (!status.ok())
            {
                return status;
            }
        }
    }
    return status;
}

} // namespace vimdeploy
