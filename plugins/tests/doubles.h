//! \file doubles.h
//! Stand-ins for what needs a GPU: they record what the plugin would have launched. Plans and checks are the real ones.
#pragma once

#include "kernels/causal_conv1d/launch.h"
#include "kernels/selective_scan/launch.h"

namespace vimdeploy::test
{

//! The device that smCount() answers for: tests build on one and run on another.
struct Device
{
    int32_t multiprocessors{108};
    int32_t sharedPerSm{164 * 1024};
};

Device& device();

struct Launches
{
    int scans{0};
    int convs{0};
    ScanShape scanShape;
    ScanPlan scanPlan;
    ScanPointers scanPointers;
    Workspace workspace;
    ConvShape convShape;
    ConvPointers convPointers;
    cudaStream_t stream{nullptr};
    cudaError_t answer{cudaSuccess}; //!< what CUDA says to launches that are not refused
};

//! The record of this process; tests reset it by assigning {}.
Launches& launches();

} // namespace vimdeploy::test
