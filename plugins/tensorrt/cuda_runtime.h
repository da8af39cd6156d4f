//! \file cuda_runtime.h
//! The little that the plugins ask of the CUDA runtime. A seam: the host tests link a double instead (tests/doubles.cpp).
#pragma once

#include "kernels/common/launch_status.h"

#include <cstdint>

namespace vimdeploy
{

//! Multiprocessors of the current device, asked once per device. Neither synchronises nor disturbs a stream capture.
//! \return a middle-sized GPU's number where no device answers: plans then still exist, and a launch will say the rest.
int32_t smCount() noexcept;

//! Bytes of shared memory of one multiprocessor of the current device, as smCount().
int32_t sharedPerSm() noexcept;

//! CUDA's own words for \p status.
char const* errorText(cudaError_t status) noexcept;

//! Why a launch was not queued: the kernels' refusal, or CUDA's words.
inline char const* textOf(LaunchStatus const& status) noexcept
{
    return status.isRefusal() ? status.refusal : errorText(status.cuda);
}

} // namespace vimdeploy
