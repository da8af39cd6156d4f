//! \file ceilings.cu
//! The rate of ex2.approx.ftz.f32, the instruction that bounds the scan where memory does not. Each thread runs eight
//! independent chains, so that latency is hidden; the results are stored, so that nothing is removed.
#include <cstdint>
#include <cuda_runtime_api.h>

namespace
{

constexpr int kCHAINS = 8;

__device__ __forceinline__ float exp2Approx(float x)
{
    float result;
    asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__global__ void __launch_bounds__(256) expRate(float* out, int iterations)
{
    float value[kCHAINS];
    float const start = -1.0F - 1e-6F * static_cast<float>(blockIdx.x * blockDim.x + threadIdx.x);
    for (int i = 0; i < kCHAINS; ++i)
    {
        value[i] = start * static_cast<float>(i + 1);
    }
#pragma unroll 4
    for (int n = 0; n < iterations; ++n)
    {
#pragma unroll
        for (int i = 0; i < kCHAINS; ++i)
        {
            value[i] = exp2Approx(-value[i]); // stays between 0 and 1
        }
    }
    float sum = 0.0F;
    for (int i = 0; i < kCHAINS; ++i)
    {
        sum += value[i];
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

} // namespace

extern "C"
{

//! Queues blocks * 256 * 8 * iterations exponentials. \param out blocks * 256 floats \return 0 or a CUDA error.
__attribute__((visibility("default"))) int32_t gpu_suite_exp_rate(
    float* out, int32_t blocks, int32_t iterations, void* stream)
{
    expRate<<<static_cast<unsigned>(blocks), 256, 0, static_cast<cudaStream_t>(stream)>>>(out, iterations);
    return static_cast<int32_t>(cudaGetLastError());
}

int32_t gpu_suite_exp_chains()
{
    return kCHAINS;
}

} // extern "C"
