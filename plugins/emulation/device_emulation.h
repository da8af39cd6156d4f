//! \file device_emulation.h
//! CUDA's device vocabulary on the host, as far as the kernels use it. Included by kernels/common/device.cuh in place of nvcc's.
//!
//! Every CUDA thread is a fiber of one OS thread. What the sanitizers must see (accesses of shared and global memory)
//! is inlined here and instrumented with the kernels; the scheduler's bookkeeping (scheduler.cpp) is not.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define threadIdx (::vimdeploy::emulation::current().thread)
#define blockIdx (::vimdeploy::emulation::current().block)
#define blockDim (::vimdeploy::emulation::current().blockSize)
#define __syncthreads() ::vimdeploy::emulation::syncThreads(__FILE__, __LINE__)
#define __syncwarp() ::vimdeploy::emulation::warpCollective(nullptr, nullptr, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, distance) \
    ::vimdeploy::emulation::shuffleXor((mask), (value), (distance), __FILE__, __LINE__)
#define VIMDEPLOY_DYNAMIC_SHARED(name) unsigned char* const name = ::vimdeploy::emulation::dynamicShared()
#define VIMDEPLOY_LAUNCH(kernel, grid, block, sharedBytes, stream, params) \
    ((void) (stream), ::vimdeploy::emulation::launch((grid), (block), (sharedBytes), [&] { kernel(params); }))

struct alignas(8) float2
{
    float x;
    float y;
};
struct alignas(16) float4
{
    float x;
    float y;
    float z;
    float w;
};
struct alignas(8) uint2
{
    uint32_t x;
    uint32_t y;
};
struct alignas(16) uint4
{
    uint32_t x;
    uint32_t y;
    uint32_t z;
    uint32_t w;
};

inline float2 make_float2(float x, float y)
{
    return {x, y};
}

inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

inline uint32_t __umulhi(uint32_t a, uint32_t b)
{
    return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32U);
}

namespace vimdeploy
{

using std::fabs;
using std::max;
using std::min;

namespace emulation
{

//! What a running CUDA thread knows about itself.
struct ThreadView
{
    dim3 thread;
    dim3 block;
    dim3 blockSize;
};

ThreadView const& current() noexcept;
unsigned char* dynamicShared() noexcept;
void syncThreads(char const* file, int line) noexcept;
//! Waits for all lanes of the warp at this very call; the last to arrive calls `combine`, unless it is null, with what
//! the 32 lanes brought, by lane.
void warpCollective(void* payload, void (*combine)(void** payloads), char const* file, int line) noexcept;
//! Ends the process: a rule of the machine was broken.
[[noreturn]] void fault(char const* what) noexcept;
//! Runs the blocks in turn, their threads interleaved in seeded random order.
cudaError_t launch(dim3 grid, dim3 block, std::size_t sharedBytes, std::function<void()> const& kernel);

//! Seed of thread order and of the approximate instructions' errors.
void setSeed(uint64_t seed) noexcept;
//! Runs only the first and the last `count` blocks of each launch; 0: all.
void setBlockFilter(uint64_t count) noexcept;

struct ShuffleLane
{
    float value;
    int distance;
    float result;
};

inline void combineShuffle(void** payloads)
{
    for (int lane = 0; lane < 32; ++lane)
    {
        ShuffleLane& target = *static_cast<ShuffleLane*>(payloads[lane]);
        target.result = static_cast<ShuffleLane const*>(payloads[lane ^ target.distance])->value;
    }
}

inline float shuffleXor(uint32_t mask, float value, int distance, char const* file, int line)
{
    if (mask != 0xffffffffU)
    {
        fault("only whole warps are served");
    }
    ShuffleLane lane{value, distance, 0.0F};
    warpCollective(&lane, combineShuffle, file, line);
    return lane.result;
}

//! mma.sync.m16n8k8.row.col: c (16 x 8, float32) += a (16 x 8) * b (8 x 8), spread over the lanes of a warp as the PTX
//! manual has it. With g = lane / 4 and t = lane % 4 a lane holds
//!     a[0], a[1]: row g, columns 2t, 2t + 1;  a[2], a[3]: row g + 8    b[0], b[1]: rows 2t, 2t + 1, column g
//!     c[0], c[1]: row g, columns 2t, 2t + 1;  c[2], c[3]: row g + 8
struct MmaLane
{
    float a[4];
    float b[2];
    float c[4];
};

inline void combineMma(void** payloads)
{
    for (int lane = 0; lane < 32; ++lane)
    {
        MmaLane& target = *static_cast<MmaLane*>(payloads[lane]);
        for (int i = 0; i < 4; ++i)
        {
            int const row = lane / 4 + i / 2 * 8;
            int const column = lane % 4 * 2 + i % 2;
            for (int k = 0; k < 8; ++k)
            {
                MmaLane const& rowLane = *static_cast<MmaLane const*>(payloads[row % 8 * 4 + k / 2]);
                MmaLane const& columnLane = *static_cast<MmaLane const*>(payloads[column * 4 + k / 2]);
                target.c[i] += rowLane.a[row / 8 * 2 + k % 2] * columnLane.b[k % 2];
            }
        }
    }
}

inline void mma(MmaLane& lane, char const* file, int line)
{
    warpCollective(&lane, combineMma, file, line);
}

//! A value in [-1, 1] that depends on the bits of x and on the seed only.
float noise(float x) noexcept;

//! ex2.approx.ftz: denormals are 0 on both ends, relative error up to 2^-22.
inline float exp2Approx(float x)
{
    float const exact = std::exp2(std::fabs(x) < 1.17549435e-38F ? 0.0F : x);
    float const result = exact * (1.0F + noise(x) * 2.384185791e-7F);
    return result < 1.17549435e-38F ? 0.0F : result;
}

//! rcp.approx.ftz: one ulp, denormals are 0 on both ends.
inline float reciprocalApprox(float x)
{
    float const exact = 1.0F / (std::fabs(x) < 1.17549435e-38F ? std::copysign(0.0F, x) : x);
    float const result = exact * (1.0F + noise(x) * 1.192092896e-7F);
    return std::fabs(result) < 1.17549435e-38F ? std::copysign(0.0F, x) : result;
}

//! Copies a thread has started and not yet waited for.
struct PendingCopies
{
    static constexpr int kCAPACITY = 4096;
    struct Copy
    {
        void* target;
        void const* source;
        int bytes;
    };
    int count{0};
    Copy copies[kCAPACITY];
};

PendingCopies& pendingCopies() noexcept;

//! The machine may write the target at any time from now to the wait. So it is written twice: with NaN bits now, which
//! who still reads the old contents will see, and with the data at the wait, which who reads too early will miss.
inline void asyncCopy(void* shared, void const* global, int bytes)
{
    auto const misaligned = [&](void const* pointer)
    { return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) != 0; };
    if (misaligned(shared) || misaligned(global))
    {
        fault("asynchronous copy between misaligned addresses");
    }
    PendingCopies& pending = pendingCopies();
    if (pending.count == PendingCopies::kCAPACITY)
    {
        fault("too many asynchronous copies without a wait");
    }
    std::memset(shared, 0xff, static_cast<std::size_t>(bytes));
    pending.copies[pending.count++] = {shared, global, bytes};
}

inline void asyncCopyWait()
{
    PendingCopies& pending = pendingCopies();
    for (int i = 0; i < pending.count; ++i)
    {
        PendingCopies::Copy const& copy = pending.copies[i];
        std::memcpy(copy.target, copy.source, static_cast<std::size_t>(copy.bytes));
    }
    pending.count = 0;
}

} // namespace emulation
} // namespace vimdeploy
