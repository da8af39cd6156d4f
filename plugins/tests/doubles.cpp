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

Device& device()
{
    static Device sDevice;
    return sDevice;
}

} // namespace test

int32_t smCount() noexcept
{
    return test::device().multiprocessors;
}

int32_t sharedPerSm() noexcept
{
    return test::device().sharedPerSm;
}

char const* errorText(cudaError_t status) noexcept
{
    return status == cudaErrorInvalidValue ? "invalid argument" : "another error";
}

LaunchStatus launchScan(ScanShape const& shape, ScanPlan const& plan, ScanPointers const& pointers,
    Workspace const& workspace, cudaStream_t stream) noexcept
{
    LaunchStatus status;
    if (checkScanLaunch(shape, plan, pointers, workspace, status.refusal, sizeof(status.refusal)) != nullptr)
    {
        status.cuda = cudaErrorInvalidValue;
        return status;
    }
    test::Launches& record = test::launches();
    ++record.scans;
    record.scanShape = shape;
    record.scanPlan = plan;
    record.scanPointers = pointers;
    record.workspace = workspace;
    record.stream = stream;
    status.cuda = record.answer;
    return status;
}

LaunchStatus launchConv(ConvShape const& shape, ConvPointers const& pointers, cudaStream_t stream) noexcept
{
    LaunchStatus status;
    if (checkConvLaunch(pointers, status.refusal, sizeof(status.refusal)) != nullptr)
    {
        status.cuda = cudaErrorInvalidValue;
        return status;
    }
    test::Launches& record = test::launches();
    ++record.convs;
    record.convShape = shape;
    record.convPointers = pointers;
    record.stream = stream;
    status.cuda = record.answer;
    return status;
}

} // namespace vimdeploy
