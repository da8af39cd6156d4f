//! \file causal_conv1d/launch.cu
//! Checks a problem and queues the kernel: capture-safe, no allocation, no synchronisation.

#include "launch.h"
#include "kernel.cuh"

#include <cstdio>

namespace vimdeploy
{
namespace
{

constexpr int64_t kMAX_BLOCKS = INT32_MAX;

int64_t divideUp(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

template <typename T, int kK>
cudaError_t queue(conv::Params const& params, bool vectorized, unsigned blocks, cudaStream_t stream)
{
    return vectorized
        ? VIMDEPLOY_LAUNCH((conv::convKernel<T, kK, conv::kVECTOR>), dim3(blocks), dim3(conv::kTHREADS), 0, stream, params)
        : VIMDEPLOY_LAUNCH((conv::convKernel<T, kK, 1>), dim3(blocks), dim3(conv::kTHREADS), 0, stream, params);
}

template <typename T>
cudaError_t queueWidth(
    int32_t width, conv::Params const& params, bool vectorized, unsigned blocks, cudaStream_t stream)
{
    switch (width)
    {
    case 2: return queue<T, 2>(params, vectorized, blocks, stream);
    case 3: return queue<T, 3>(params, vectorized, blocks, stream);
    case 4: return queue<T, 4>(params, vectorized, blocks, stream);
    default: return cudaErrorInvalidValue;
    }
}

} // namespace

char const* checkConvShape(ConvShape const& shape, char* message, std::size_t size) noexcept
{
    auto const wrong = [&](char const* format, char const* field, int64_t value)
    {
        std::snprintf(message, size, format, field, static_cast<long long>(value));
        return message;
    };
    if (sizeOf(shape.type) == 0)
    {
        return wrong("%s is %lld; float32 (0), float16 (1) and bfloat16 (2) are served", "type",
            static_cast<int64_t>(shape.type));
    }
    if (shape.batch < 0 || shape.batch > kMAX_BLOCKS)
    {
        return wrong("%s is %lld; at least 0 is needed and at most 2147483647 served", "batch", shape.batch);
    }
    if (shape.length < 1 || shape.length > kMAX_BLOCKS)
    {
        return wrong("%s is %lld; 1 to 2147483647 tokens are served", "length", shape.length);
    }
    if (shape.channels < 1 || shape.channels > (1 << 24))
    {
        return wrong("%s is %lld; 1 to 16777216 are served", "channels", shape.channels);
    }
    if (shape.width < kMIN_CONV_WIDTH || shape.width > kMAX_CONV_WIDTH)
    {
        return wrong("%s (d_conv) is %lld; 2, 3 and 4 are served", "width", shape.width);
    }
    if (shape.groups != 1 && shape.groups != 2 && shape.groups != 4)
    {
        return wrong("%s is %lld; 1, 2 and 4 are served", "groups", shape.groups);
    }
    for (int32_t g = 0; g < shape.groups; ++g)
    {
        if (shape.directions[g] != 1 && shape.directions[g] != -1)
        {
            return wrong("an entry of %s is %lld; 1 (forward) or -1 (backward) is expected", "directions",
                shape.directions[g]);
        }
    }
    int64_t const runs = divideUp(shape.length, conv::kTOKENS);
    if (shape.batch > 0 && runs * shape.channels > kMAX_BLOCKS * conv::kTHREADS / shape.batch)
    {
        return wrong("%s times length and channels is too large for one launch at batch %lld", "batch", shape.batch);
    }
    return nullptr;
}

cudaError_t launchConv(ConvShape const& shape, ConvPointers const& pointers, cudaStream_t stream) noexcept
{
    if (shape.batch == 0)
    {
        return cudaSuccess;
    }
    if (pointers.x == nullptr || pointers.weight == nullptr || pointers.bias == nullptr || pointers.u == nullptr)
    {
        return cudaErrorInvalidValue;
    }
    std::size_t const vectorBytes = sizeOf(shape.type) * conv::kVECTOR;
    bool const vectorized = shape.channels % conv::kVECTOR == 0
        && reinterpret_cast<std::uintptr_t>(pointers.x) % vectorBytes == 0
        && reinterpret_cast<std::uintptr_t>(pointers.u) % vectorBytes == 0;
    conv::Params params{};
    params.x = pointers.x;
    params.weight = pointers.weight;
    params.bias = pointers.bias;
    params.u = pointers.u;
    params.batch = shape.batch;
    params.length = shape.length;
    params.channels = shape.channels;
    params.groups = shape.groups;
    params.rowVectors = vectorized ? shape.channels / conv::kVECTOR : shape.channels;
    params.runs = divideUp(shape.length, conv::kTOKENS);
    params.work = shape.batch * params.runs * params.rowVectors;
    for (int32_t g = 0; g < shape.groups; ++g)
    {
        params.backward |= shape.directions[g] < 0 ? 1U << g : 0U;
    }
    params.silu = shape.silu;
    auto const blocks = static_cast<unsigned>(divideUp(params.work, conv::kTHREADS));
    switch (shape.type)
    {
    case DType::kFLOAT32: return queueWidth<float>(shape.width, params, vectorized, blocks, stream);
    case DType::kFLOAT16: return queueWidth<__half>(shape.width, params, vectorized, blocks, stream);
    case DType::kBFLOAT16: return queueWidth<__nv_bfloat16>(shape.width, params, vectorized, blocks, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace vimdeploy
