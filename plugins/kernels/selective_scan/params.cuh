//! \file params.cuh
//! What one launch of the scan kernel is told.
#pragma once

#include "kernels/common/device.cuh"
#include "layout.h"

#include <cstdint>

namespace vimdeploy
{
namespace scan
{

//! One launch: one or two groups ("sides") over one walk of the tokens.
struct Params
{
    void const* u;
    void const* xDbl;
    float const* A;
    float const* D;
    void const* dtWeight;
    float const* dtBias;
    void const* delta; //!< given: then xDbl is B, and C lies beside it
    void const* C;
    void const* z;
    void* y;
    float* partial;    //!< (B, L, E) float32 sums that wait for the other visits of a token; may be y itself
    float* chunkState; //!< (side, B, chunk, E, N): state a chunk ends with when it starts from 0
    float* chunkDelta; //!< (side, B, chunk, E): sum of delta over the chunk
    int64_t uGroupStride;
    int64_t xDblGroupStride;
    int64_t batch;
    int32_t length;
    int32_t chunkLength;
    int32_t chunks;
    int32_t channels;
    int32_t channelBlocks;
    int32_t groupBlocks;   //!< channel blocks of one group of channels; all of them where delta is not given
    int32_t groupChannels; //!< channels of one group of channels
    int32_t states;
    int32_t rank;
    int32_t tileLength;
    int32_t lanes; //!< threads per channel
    int32_t group[kMAX_SIDES];
    int32_t direction[kMAX_SIDES];
    int32_t gridWidth;      //!< W of the H x W token grid, column-major walks only
    FastDivisor gridHeight; //!< H
    float scale;
    int32_t xVectorBytes;  //!< widest copy that every row of xDbl allows: 16, 8, 4 or 2
    FastDivisor xVectors;  //!< such copies per row
    FastDivisor rowFloats; //!< SharedLayout::rowFloats
    bool columnMajor;
    bool vectorized;    //!< rows of u, z, y and partial start on 16-byte boundaries
    bool stagedWeights; //!< dt_weight in shared memory
    bool tensorDelta;   //!< the rows of x_dbl allow the dt projection on tensor cores
    bool sumsBefore;    //!< an earlier launch left sums in partial
    bool finishes;      //!< no later launch adds to these tokens
    bool gated;
    bool givenDelta;
    bool deltaSoftplus;
};

} // namespace scan
} // namespace vimdeploy
