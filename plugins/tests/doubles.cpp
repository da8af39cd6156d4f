#include "doubles.h"

#include "tensorrt/cuda_runtime.h"

namespace vimdeploy
{
namespace test
{

Launches& launches()
{
    static Launches sLaunches;
    return sLaunches;
}

} // namespace test

int32_t smCount() noexcept
{
    return 108;
}

char const* errorText(cudaError_t status) noexcept
{
    return status == cudaErrorInvalidValue ? "invalid argument" : "another error";
}

cudaError_t launchScan(ScanShape const& shape, ScanPlan const& plan, ScanPointers const& pointers, void* workspace,
    cudaStream_t stream) noexcept
{
    test::Launches& record = test::launches();
    ++record.scans;
    record.scanShape = shape;
    record.scanPlan = plan;
    record.scanPointers = pointers;
    record.workspace = workspace;
    record.stream = stream;
    return record.answer;
}

cudaError_t launchConv(ConvShape const& shape, ConvPointers const& pointers, cudaStream_t stream) noexcept
{
    test::Launches& record = test::launches();
    ++record.convs;
    record.convShape = shape;
    record.convPointers = pointers;
    record.stream = stream;
    return record.answer;
}

} // namespace vimdeploy
