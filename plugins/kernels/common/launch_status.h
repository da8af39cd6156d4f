//! \file launch_status.h
//! What every launch takes and answers besides its own tensors.
#pragma once

#include "types.h"

#include <cstdio>
#include <cuda_runtime_api.h>
#include <initializer_list>

namespace vimdeploy
{

//! Device memory that a launch may write, and how much of it there is: a launch assumes nothing.
struct Workspace
{
    void* data{nullptr};
    std::size_t bytes{0};
};

//! The outcome of queueing kernels.
struct LaunchStatus
{
    cudaError_t cuda{cudaSuccess}; //!< CUDA's own status; cudaErrorInvalidValue where we refused
    char refusal[kMESSAGE_SIZE]{}; //!< what we refused and why, in one sentence; empty where CUDA speaks

    bool ok() const noexcept
    {
        return cuda == cudaSuccess;
    }

    bool isRefusal() const noexcept
    {
        return refusal[0] != '\0';
    }
};

//! A tensor's address and its name in the contract.
struct NamedPointer
{
    char const* name;
    void const* pointer;
};

//! \return nullptr where no pointer is null, else `message`, which names the first that is.
inline char const* checkPointers(std::initializer_list<NamedPointer> tensors, char* message, std::size_t size) noexcept
{
    for (NamedPointer const& tensor : tensors)
    {
        if (tensor.pointer == nullptr)
        {
            std::snprintf(message, size, "the pointer of tensor %s is null", tensor.name);
            return message;
        }
    }
    return nullptr;
}

} // namespace vimdeploy
