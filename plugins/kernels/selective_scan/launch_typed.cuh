//! \file launch_typed.cuh
//! Every kernel instantiation of one element type. One translation unit per type includes it, so that they compile
//! side by side.
#pragma once

#include "kernel.cuh"

namespace vimdeploy
{
namespace scan
{

struct LaunchConfig
{
    dim3 grid;
    dim3 block;
    std::size_t sharedBytes;
    cudaStream_t stream;
    int32_t states; //!< N of the kernel, 0 for the generic one
    int32_t statesPerThread;
    bool statesOnly; //!< first pass of the chunked form
};

//! Queues the kernel of `config`; cudaErrorInvalidValue where none is compiled for it.
template <typename T>
cudaError_t launchTyped(LaunchConfig const& config, Params const& params);

#if defined(VIMDEPLOY_SCAN_TYPE)

template <typename T, int kN, int kSTATES, bool kSTATES_ONLY>
cudaError_t queue(LaunchConfig const& config, Params const& params)
{
    return VIMDEPLOY_LAUNCH((scanKernel<T, kN, kSTATES, kSTATES_ONLY>), config.grid, config.block, config.sharedBytes,
        config.stream, params);
}

//! The states-only pass exists for the widest form of each N, the one the chunked variant uses.
template <typename T, int kN, int kSTATES>
cudaError_t queueEither(LaunchConfig const& config, Params const& params)
{
    return config.statesOnly ? queue<T, kN, kSTATES, true>(config, params)
                             : queue<T, kN, kSTATES, false>(config, params);
}

template <>
cudaError_t launchTyped<VIMDEPLOY_SCAN_TYPE>(LaunchConfig const& config, Params const& params)
{
    using T = VIMDEPLOY_SCAN_TYPE;
    switch (config.states * 100 + config.statesPerThread)
    {
    case 1616: return queueEither<T, 16, 16>(config, params);
    case 1608: return queue<T, 16, 8, false>(config, params);
    case 1604: return queue<T, 16, 4, false>(config, params);
    case 808: return queueEither<T, 8, 8>(config, params);
    case 804: return queue<T, 8, 4, false>(config, params);
    case 101: return queueEither<T, 1, 1>(config, params);
    case kGENERIC_STATES: return queueEither<T, 0, kGENERIC_STATES>(config, params);
    default: return cudaErrorInvalidValue;
    }
}

#endif

} // namespace scan
} // namespace vimdeploy
