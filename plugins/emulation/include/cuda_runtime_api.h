//! \file cuda_runtime_api.h
//! The few host declarations of CUDA that the kernels' host code uses, for a build without CUDA (see ../README.md).
#pragma once

#include <cstddef>
#include <cstdint>

using cudaStream_t = struct CUstream_st*;

enum cudaError_t
{
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
};

enum cudaDeviceAttr
{
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
};

struct dim3
{
    unsigned x{1};
    unsigned y{1};
    unsigned z{1};
    constexpr dim3(unsigned xSize = 1, unsigned ySize = 1, unsigned zSize = 1)
        : x(xSize)
        , y(ySize)
        , z(zSize)
    {
    }
};

inline char const* cudaGetErrorString(cudaError_t status)
{
    return status == cudaSuccess ? "no error" : "invalid argument";
}

inline cudaError_t cudaGetDevice(int* device)
{
    *device = 0;
    return cudaSuccess;
}

//! The emulated device has the multiprocessors of an H100.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /* device */)
{
    *value = attribute == cudaDevAttrMultiProcessorCount ? 132 : 228 * 1024;
    return cudaSuccess;
}
