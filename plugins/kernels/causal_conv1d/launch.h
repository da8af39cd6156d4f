//! \file causal_conv1d/launch.h
//! Host interface of the depthwise causal convolution, both directions in one launch.
//!
//! x (B, L, E) T   weight (G, E, K) T   bias (G, E) T   u (G, B, L, E) T, contiguous.
//!     direction  1:  u[t] = act(bias + sum_k weight[k] * x[t - (K - 1) + k])
//!     direction -1:  u[t] = act(bias + sum_k weight[k] * x[t + k])
//! with x = 0 outside the sequence. No workspace, no allocation, no synchronisation, nothing throws.
#pragma once

#include "kernels/common/launch_status.h"
#include "kernels/common/types.h"

namespace vimdeploy
{

struct ConvShape
{
    int64_t batch{1};
    int64_t length{1};   //!< L, tokens
    int32_t channels{1}; //!< E
    int32_t width{4};    //!< K, 2..4
    int32_t groups{1};   //!< G, 1, 2 or 4
    int32_t directions[kMAX_GROUPS]{1, 1, 1, 1};
    bool silu{true}; //!< activation "silu"; false: "none"
    DType type{DType::kFLOAT32};
};

struct ConvPointers
{
    void const* x{nullptr};
    void const* weight{nullptr};
    void const* bias{nullptr};
    void* u{nullptr};
};

//! \return nullptr when the kernel serves `shape`, else `message`, filled with one sentence naming the wrong field.
char const* checkConvShape(ConvShape const& shape, char* message, std::size_t size) noexcept;

//! \return nullptr where the launch may be queued, else `message`: which pointer is missing.
char const* checkConvLaunch(ConvPointers const& pointers, char* message, std::size_t size) noexcept;

//! Queues the kernel on `stream`. \return a refusal (checkConvLaunch), else CUDA's own status.
LaunchStatus launchConv(ConvShape const& shape, ConvPointers const& pointers, cudaStream_t stream) noexcept;

} // namespace vimdeploy
