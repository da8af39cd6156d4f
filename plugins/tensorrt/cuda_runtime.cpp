#include "cuda_runtime.h"

#include <array>
#include <atomic>
#include <cstddef>

namespace vimdeploy
{
namespace
{

constexpr int32_t kFALLBACK_SM_COUNT{80};
constexpr size_t kMAX_DEVICES{64};

} // namespace

int32_t smCount() noexcept
{
    static std::array<std::atomic<int32_t>, kMAX_DEVICES> sCounts{};
    int device{-1};
    if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= static_cast<int>(kMAX_DEVICES))
    {
        // Clears the error of a machine without a GPU, or the next launch would report it as its own.
        static_cast<void>(cudaGetLastError());
        return kFALLBACK_SM_COUNT;
    }
    std::atomic<int32_t>& count = sCounts[static_cast<size_t>(device)];
    if (count.load(std::memory_order_relaxed) == 0)
    {
        int asked{0};
        if (cudaDeviceGetAttribute(&asked, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || asked < 1)
        {
            static_cast<void>(cudaGetLastError());
            return kFALLBACK_SM_COUNT;
        }
        count.store(asked, std::memory_order_relaxed);
    }
    return count.load(std::memory_order_relaxed);
}

char const* errorText(cudaError_t status) noexcept
{
    return cudaGetErrorString(status);
}

} // namespace vimdeploy
