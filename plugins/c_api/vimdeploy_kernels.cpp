//! \file vimdeploy_kernels.cpp
//! The plain C entry points: check, plan, launch. Nothing throws; the last error of a thread is kept in its storage.

#include "vimdeploy_kernels.h"

#include "kernels/causal_conv1d/launch.h"
#include "kernels/selective_scan/launch.h"
#include "kernels/selective_scan/passes.h"

#include <cstdio>

namespace
{

using namespace vimdeploy;

thread_local char tLastError[kMESSAGE_SIZE]{};

int32_t fail(int32_t code, char const* message) noexcept
{
    if (message != tLastError)
    {
        std::snprintf(tLastError, sizeof(tLastError), "%s", message);
    }
    return code;
}

int32_t failCuda(char const* what, cudaError_t status) noexcept
{
    std::snprintf(tLastError, sizeof(tLastError), "%s: %s", what, cudaGetErrorString(status));
    return VIMDEPLOY_CUDA_ERROR;
}

int32_t answer(char const* what, LaunchStatus const& status) noexcept
{
    if (status.isRefusal())
    {
        return fail(VIMDEPLOY_INVALID_ARGUMENT, status.refusal);
    }
    return status.ok() ? VIMDEPLOY_OK : failCuda(what, status.cuda);
}

template <typename Args>
bool isOtherVersion(Args const* args) noexcept
{
    return args == nullptr || args->struct_size != sizeof(Args);
}

constexpr char const* kOTHER_VERSION
    = "a struct is null or of another version of vimdeploy_kernels.h (struct_size differs)";

int32_t check(ScanShape const& shape) noexcept
{
    char message[kMESSAGE_SIZE];
    char const* problem = checkScanShape(shape, message, sizeof(message));
    return problem != nullptr ? fail(VIMDEPLOY_INVALID_ARGUMENT, problem) : VIMDEPLOY_OK;
}

int32_t readShape(vimdeploy_scan_args const* args, ScanShape& shape) noexcept
{
    if (isOtherVersion(args))
    {
        return fail(VIMDEPLOY_INVALID_ARGUMENT, kOTHER_VERSION);
    }
    shape.batch = args->batch;
    shape.length = args->length;
    shape.channels = args->channels;
    shape.states = args->states;
    shape.rank = args->rank;
    shape.groups = args->groups;
    shape.sharedU = args->shared_u != 0;
    shape.sharedXDbl = args->shared_x_dbl != 0;
    shape.gated = args->gated != 0;
    for (int32_t g = 0; g < kMAX_GROUPS; ++g)
    {
        shape.directions[g] = args->directions[g];
        shape.columnMajor[g] = args->column_major[g];
    }
    shape.height = args->height;
    shape.scale = args->scale;
    shape.type = static_cast<DType>(args->dtype);
    return check(shape);
}

int32_t readShape(vimdeploy_scan_delta_args const* args, ScanShape& shape) noexcept
{
    if (isOtherVersion(args))
    {
        return fail(VIMDEPLOY_INVALID_ARGUMENT, kOTHER_VERSION);
    }
    shape.batch = args->batch;
    shape.length = args->length;
    shape.channels = args->channels;
    shape.states = args->states;
    shape.rank = 0;
    shape.givenDelta = true;
    shape.deltaSoftplus = args->delta_softplus != 0;
    shape.channelGroups = args->channel_groups;
    shape.directions[0] = args->reverse != 0 ? -1 : 1;
    shape.gated = args->gated != 0;
    shape.type = static_cast<DType>(args->dtype);
    return check(shape);
}

ScanPointers pointersOf(vimdeploy_scan_args const& args) noexcept
{
    ScanPointers pointers;
    pointers.u = args.u;
    pointers.xDbl = args.x_dbl;
    pointers.A = static_cast<float const*>(args.a);
    pointers.D = static_cast<float const*>(args.d);
    pointers.dtWeight = args.dt_weight;
    pointers.dtBias = static_cast<float const*>(args.dt_bias);
    pointers.z = args.z;
    pointers.y = args.y;
    return pointers;
}

ScanPointers pointersOf(vimdeploy_scan_delta_args const& args) noexcept
{
    ScanPointers pointers;
    pointers.u = args.u;
    pointers.delta = args.delta;
    pointers.A = static_cast<float const*>(args.a);
    pointers.B = args.b;
    pointers.C = args.c;
    pointers.D = static_cast<float const*>(args.d);
    pointers.dtBias = static_cast<float const*>(args.delta_bias);
    pointers.z = args.z;
    pointers.y = args.y;
    return pointers;
}

template <typename Args>
int32_t readDevice(Args const* args, ScanDevice& device) noexcept
{
    device.smCount = args->sm_count;
    if (device.smCount > 0)
    {
        return VIMDEPLOY_OK;
    }
    int number = 0;
    cudaError_t status = cudaGetDevice(&number);
    if (status == cudaSuccess)
    {
        status = cudaDeviceGetAttribute(&device.smCount, cudaDevAttrMultiProcessorCount, number);
    }
    if (status == cudaSuccess)
    {
        status = cudaDeviceGetAttribute(&device.sharedPerSm, cudaDevAttrMaxSharedMemoryPerMultiprocessor, number);
    }
    return status == cudaSuccess ? VIMDEPLOY_OK : failCuda("the device's properties could not be read", status);
}

template <typename Args>
int32_t makePlan(Args const* args, ScanShape& shape, ScanPlan& plan, int32_t& smCount) noexcept
{
    ScanDevice device{0};
    int32_t code = readShape(args, shape);
    if (code == VIMDEPLOY_OK)
    {
        code = readDevice(args, device);
    }
    if (code != VIMDEPLOY_OK)
    {
        return code;
    }
    smCount = device.smCount;
    plan = args->variant == 0 ? planScan(shape, device)
                              : planScanVariant(shape, static_cast<ScanVariant>(args->variant), device);
    if (plan.variant == ScanVariant::kNONE)
    {
        std::snprintf(tLastError, sizeof(tLastError), "variant %d cannot run %d states; ask vimdeploy_scan_variants",
            static_cast<int>(args->variant), static_cast<int>(shape.states));
        return VIMDEPLOY_INVALID_ARGUMENT;
    }
    return VIMDEPLOY_OK;
}

template <typename Args>
int32_t listVariants(Args const* args, int32_t* variants, int32_t capacity) noexcept
{
    ScanShape shape;
    int32_t const code = readShape(args, shape);
    if (code != VIMDEPLOY_OK)
    {
        return code;
    }
    if (variants == nullptr && capacity > 0)
    {
        return fail(VIMDEPLOY_INVALID_ARGUMENT, "variants is null");
    }
    ScanVariant found[kSCAN_VARIANT_COUNT];
    int32_t const count = scanVariants(shape, found);
    for (int32_t i = 0; i < count && i < capacity; ++i)
    {
        variants[i] = static_cast<int32_t>(found[i]);
    }
    return count;
}

template <typename Args>
int32_t workspaceSize(Args const* args, uint64_t* bytes) noexcept
{
    ScanShape shape;
    ScanPlan plan;
    int32_t smCount = 0;
    int32_t const code = makePlan(args, shape, plan, smCount);
    if (code != VIMDEPLOY_OK)
    {
        return code;
    }
    if (bytes == nullptr)
    {
        return fail(VIMDEPLOY_INVALID_ARGUMENT, "bytes is null");
    }
    *bytes = scanWorkspaceSize(shape, plan.variant, smCount);
    return VIMDEPLOY_OK;
}

template <typename Args>
int32_t runScan(Args const* args) noexcept
{
    ScanShape shape;
    ScanPlan plan;
    int32_t smCount = 0;
    int32_t const code = makePlan(args, shape, plan, smCount);
    if (code != VIMDEPLOY_OK)
    {
        return code;
    }
    std::size_t const needed = scanWorkspaceSize(shape, plan.variant, smCount);
    if (args->workspace_size < needed || (needed > 0 && args->workspace == nullptr))
    {
        std::snprintf(tLastError, sizeof(tLastError), "workspace has %llu bytes; %llu are needed",
            static_cast<unsigned long long>(args->workspace == nullptr ? 0 : args->workspace_size),
            static_cast<unsigned long long>(needed));
        return VIMDEPLOY_WORKSPACE_TOO_SMALL;
    }
    Workspace const workspace{args->workspace, static_cast<std::size_t>(args->workspace_size)};
    return answer("the scan could not be launched",
        launchScan(shape, plan, pointersOf(*args), workspace, static_cast<cudaStream_t>(args->stream)));
}

} // namespace

extern "C"
{
int32_t vimdeploy_kernels_abi(void)
{
    return VIMDEPLOY_KERNELS_ABI;
}

char const* vimdeploy_kernels_backend(void)
{
#if defined(VIMDEPLOY_EMULATION)
    return "emulated";
#else
    return "cuda";
#endif
}

char const* vimdeploy_last_error(void)
{
    return tLastError;
}

int32_t vimdeploy_scan_plan_query(vimdeploy_scan_args const* args, vimdeploy_scan_plan* plan)
{
    if (isOtherVersion(plan))
    {
        return fail(VIMDEPLOY_INVALID_ARGUMENT, kOTHER_VERSION);
    }
    ScanShape shape;
    ScanPlan made;
    int32_t smCount = 0;
    int32_t const code = makePlan(args, shape, made, smCount);
    if (code != VIMDEPLOY_OK)
    {
        return code;
    }
    plan->variant = static_cast<int32_t>(made.variant);
    plan->tile_length = made.tileLength;
    plan->chunks = made.chunks;
    plan->launches = scan::makePasses(shape).count * (made.chunks > 1 ? 2 : 1);
    plan->chunk_length = made.chunkLength;
    plan->shared_bytes = made.sharedBytes;
    return VIMDEPLOY_OK;
}

int32_t vimdeploy_scan_variants(vimdeploy_scan_args const* args, int32_t* variants, int32_t capacity)
{
    return listVariants(args, variants, capacity);
}

int32_t vimdeploy_scan_workspace_size(vimdeploy_scan_args const* args, uint64_t* bytes)
{
    return workspaceSize(args, bytes);
}

int32_t vimdeploy_scan(vimdeploy_scan_args const* args)
{
    return runScan(args);
}

int32_t vimdeploy_scan_delta_variants(vimdeploy_scan_delta_args const* args, int32_t* variants, int32_t capacity)
{
    return listVariants(args, variants, capacity);
}

int32_t vimdeploy_scan_delta_workspace_size(vimdeploy_scan_delta_args const* args, uint64_t* bytes)
{
    return workspaceSize(args, bytes);
}

int32_t vimdeploy_scan_delta(vimdeploy_scan_delta_args const* args)
{
    return runScan(args);
}

int32_t vimdeploy_conv(vimdeploy_conv_args const* args)
{
    if (isOtherVersion(args))
    {
        return fail(VIMDEPLOY_INVALID_ARGUMENT, kOTHER_VERSION);
    }
    ConvShape shape;
    shape.batch = args->batch;
    shape.length = args->length;
    shape.channels = args->channels;
    shape.width = args->width;
    shape.groups = args->groups;
    shape.silu = args->silu != 0;
    shape.type = static_cast<DType>(args->dtype);
    for (int32_t g = 0; g < kMAX_GROUPS; ++g)
    {
        shape.directions[g] = args->directions[g];
    }
    char message[kMESSAGE_SIZE];
    if (char const* problem = checkConvShape(shape, message, sizeof(message)))
    {
        return fail(VIMDEPLOY_INVALID_ARGUMENT, problem);
    }
    ConvPointers pointers;
    pointers.x = args->x;
    pointers.weight = args->weight;
    pointers.bias = args->bias;
    pointers.u = args->u;
    return answer(
        "the convolution could not be launched", launchConv(shape, pointers, static_cast<cudaStream_t>(args->stream)));
}

} // extern "C"
