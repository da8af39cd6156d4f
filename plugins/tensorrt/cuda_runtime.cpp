#include "cuda_runtime.h"

#include <array>
#include <atomic>
#include <cstddef>

namespace vimdeploy
{
namespace
{

constexpr int32_t kFALLBACK_SM_COUNT{80};
constexpr int32_t kFALLBACK_SHARED_PER_SM{100 * 1024};
constexpr size_t kMAX_DEVICES{64};

using Answers = std::array<std::atomic<int32_t>, kMAX_DEVICES>;

//! An attribute of the current device, asked once per device.
int32_t attributeOf(Answers& answers, cudaDeviceAttr attribute, int32_t fallback) noexcept
{
    int device{-1};
    if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= static_cast<int>(kMAX_DEVICES))
    {
        // Clears the error of a machine without a GPU, or the next launch would report it as its own.
        static_cast<void>(cudaGetLastError());
        return fallback;
    }
    std::atomic<int32_t>& answer = answers[static_cast<size_t>(device)];
    if (answer.load(std::memory_order_relaxed) == 0)
    {
        int asked{0};
        if (cudaDeviceGetAttribute(&asked, attribute, device) != cudaSuccess || asked < 1)
        {
            static_cast<void>(cudaGetLastError());
            return fallback;
        }
        answer.store(asked, std::memory_order_relaxed);
    }
    return answer.load(std::memory_order_relaxed);
}

} // namespace

int32_t smCount() noexcept
{
    static Answers sAnswers{};
    return attributeOf(sAnswers, cudaDevAttrMultiProcessorCount, kFALLBACK_SM_COUNT);
}

int32_t sharedPerSm() noexcept
{
    static Answers sAnswers{};
    return attributeOf(sAnswers, cudaDevAttrMaxSharedMemoryPerMultiprocessor, kFALLBACK_SHARED_PER_SM);
}

char const* errorText(cudaError_t status) noexcept
{
    return cudaGetErrorString(status);
}

} // namespace vimdeploy
