//! \file causal_conv1d/launch.cu
//! Queues the kernel: capture-safe, no allocation, no synchronisation.

#include "kernel.cuh"
#include "launch.h"

namespace vimdeploy
{
namespace
{

int64_t divideUp(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

template <typename T, int kK>
cudaError_t queue(conv::Params const& params, bool vectorized, unsigned blocks, cudaStream_t stream)
{
    return vectorized
        ? VIMDEPLOY_LAUNCH(
              (conv::convKernel<T, kK, conv::kVECTOR>), dim3(blocks), dim3(conv::kTHREADS), 0, stream, params)
        : VIMDEPLOY_LAUNCH((conv::convKernel<T, kK, 1>), dim3(blocks), dim3(conv::kTHREADS), 0, stream, params);
}

template <typename T>
cudaError_t queueWidth(int32_t width, conv::Params const& params, bool vectorized, unsigned blocks, cudaStream_t stream)
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

LaunchStatus launchConv(ConvShape const& shape, ConvPointers const& pointers, cudaStream_t stream) noexcept
{
    LaunchStatus status;
    if (shape.batch == 0)
    {
        return status;
    }
    if (checkConvLaunch(pointers, status.refusal, sizeof(status.refusal)) != nullptr)
    {
        status.cuda = cudaErrorInvalidValue;
        return status;
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
    case DType::kFLOAT32: status.cuda = queueWidth<float>(shape.width, params, vectorized, blocks, stream); break;
    case DType::kFLOAT16: status.cuda = queueWidth<__half>(shape.width, params, vectorized, blocks, stream); break;
    case DType::kBFLOAT16:
        status.cuda = queueWidth<__nv_bfloat16>(shape.width, params, vectorized, blocks, stream);
        break;
    }
    return status;
}

} // namespace vimdeploy
