//! \file kernels.h
//! What the kernels of every instruction set compute: float32 tasks whose shapes ops.cpp has checked.
//!
//! Lanes are channels. A block is up to `lanes` neighbouring channels; its parameters lie packed, one vector per
//! parameter, so that the loops over tokens only broadcast what a token has. A block is computed alone and always in
//! the same way: results do not depend on how blocks are dealt to threads.
//!
//! The units that implement this are compiled for instruction sets that the machine may lack. They include no C++
//! library header: the linker would be free to take their copy of an inline function for the whole library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vimdeploy::cpu
{

//! Order in which a group walks the tokens.
struct Walk
{
    int64_t length;
    int64_t height; //!< rows of the grid where columnMajor is set
    bool backward;
    bool columnMajor;
};

//! G scans over the same tokens, summed: SelectiveScan and SelectiveScanNoGate.
struct ScanTask
{
    int64_t batch;
    int64_t channels;
    int64_t states;
    int64_t rank;
    int64_t groups;
    Walk const* walks; //!< (G)
    float scale;
    float const* u; //!< (G, B, L, E), or (1, B, L, E) where uGroupStride is 0
    int64_t uGroupStride;
    float const* xDbl; //!< (G, B, L, R + 2 N), or one for all groups where xGroupStride is 0
    int64_t xGroupStride;
    float const* packed; //!< what packScan wrote
    float const* z;      //!< (B, L, E) or null
    float* y;            //!< (B, L, E)
    float* state;        //!< (B, blocks, N, lanes), need not be initialised
};

//! Parameters of a ScanTask as they lie in the op's inputs.
struct ScanParameters
{
    int64_t channels;
    int64_t states;
    int64_t rank;
    int64_t groups;
    float const* a;        //!< (G, E, N)
    float const* d;        //!< (G, E)
    float const* dtWeight; //!< (G, E, R)
    float const* dtBias;   //!< (G, E)
};

//! One scan with delta given, channels partitioned by group: SelectiveScanDelta and SelectiveScanDeltaNoGate.
struct DeltaTask
{
    int64_t batch;
    int64_t channels;
    int64_t states;
    int64_t groups;
    Walk walk;
    bool softplus;
    float const* u;      //!< (B, L, E)
    float const* delta;  //!< (B, L, E)
    float const* b;      //!< (B, L, G, N)
    float const* c;      //!< (B, L, G, N)
    float const* packed; //!< what packDelta wrote
    float const* z;      //!< (B, L, E) or null
    float* y;            //!< (B, L, E)
    float* state;        //!< (B, blocks, N, lanes), need not be initialised
};

//! Parameters of a DeltaTask as they lie in the op's inputs.
struct DeltaParameters
{
    int64_t channels;
    int64_t states;
    int64_t groups;
    float const* a;         //!< (E, N)
    float const* d;         //!< (E)
    float const* deltaBias; //!< (E)
};

//! CausalConv1d.
struct ConvTask
{
    int64_t batch;
    int64_t length;
    int64_t channels;
    int64_t width;
    int64_t groups;
    bool silu;
    bool const* backward; //!< (G)
    float const* x;       //!< (B, L, E)
    float const* packed;  //!< what packConv wrote
    float* u;             //!< (G, B, L, E)
};

//! Parameters of a ConvTask as they lie in the op's inputs.
struct ConvParameters
{
    int64_t channels;
    int64_t width;
    int64_t groups;
    float const* weight; //!< (G, E, K)
    float const* bias;   //!< (G, E)
};

//! The kernels of one instruction set.
struct Kernels
{
    char const* name;
    int64_t lanes;

    void (*packScan)(ScanParameters const&, float* packed);
    void (*packDelta)(DeltaParameters const&, float* packed);
    void (*packConv)(ConvParameters const&, float* packed);

    //! Blocks [first, last) of one sample.
    void (*scan)(ScanTask const&, int64_t sample, int64_t first, int64_t last);
    void (*scanDelta)(DeltaTask const&, int64_t sample, int64_t first, int64_t last);
    //! Tokens [first, last) of one group of one sample.
    void (*conv)(ConvTask const&, int64_t group, int64_t sample, int64_t first, int64_t last);

    //! Conversions of `count` values; rounding is to nearest even, NaN stays NaN.
    void (*fromHalf)(uint16_t const* from, float* to, int64_t count);
    void (*toHalf)(float const* from, uint16_t* to, int64_t count);
    void (*fromBrain)(uint16_t const* from, float* to, int64_t count);
    void (*toBrain)(float const* from, uint16_t* to, int64_t count);

    //! 2^x, softplus(x) and silu(x) of `count` values, a multiple of `lanes`: what the kernels use, for tests and
    //! for the benchmark's floor.
    void (*exp2)(float const* x, float* y, int64_t count);
    void (*softplus)(float const* x, float* y, int64_t count);
    void (*silu)(float const* x, float* y, int64_t count);
};

//! Channels per group over lanes, rounded up, for every group that partitions the channels.
constexpr int64_t blocksOf(int64_t channels, int64_t partitions, int64_t lanes) noexcept
{
    return partitions * ((channels / partitions + lanes - 1) / lanes);
}

//! Floats that the pack functions write, in whole blocks.
constexpr int64_t packedScan(ScanParameters const& p, int64_t lanes) noexcept
{
    return p.groups * blocksOf(p.channels, 1, lanes) * (p.states + p.rank + 2) * lanes;
}

constexpr int64_t packedDelta(DeltaParameters const& p, int64_t lanes) noexcept
{
    return blocksOf(p.channels, p.groups, lanes) * (p.states + 2) * lanes;
}

constexpr int64_t packedConv(ConvParameters const& p, int64_t lanes) noexcept
{
    return p.groups * blocksOf(p.channels, 1, lanes) * (p.width + 1) * lanes;
}

// VIMDEPLOY_ONLY_BASE: a build of the portable unit alone.
#if defined(__x86_64__) && !defined(VIMDEPLOY_ONLY_BASE)
extern Kernels const kKERNELS_AVX512;
extern Kernels const kKERNELS_AVX2;
#endif
#if defined(__aarch64__) && !defined(VIMDEPLOY_ONLY_BASE)
extern Kernels const kKERNELS_NEON;
#endif
extern Kernels const kKERNELS_BASE;

} // namespace vimdeploy::cpu
