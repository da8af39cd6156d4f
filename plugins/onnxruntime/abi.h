//! \file abi.h
//! The part of ONNX Runtime's C interface that custom ops use. Its header comes with no package, and is not needed: the
//! interface is a table of functions that only ever grows at its end, so that a slot means the same in every version
//! since it was added. Asking for version 18 serves ONNX Runtime 1.18 and all later ones.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vimdeploy::ort
{

constexpr uint32_t kAPI_VERSION = 18;

// ONNX Runtime's own objects; never looked into.
struct OrtStatus;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtCustomOpDomain;
struct OrtSessionOptions;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;

//! OrtErrorCode
enum class Code : int
{
    kFAIL = 1,
    kINVALID_ARGUMENT = 2,
};

//! ONNXTensorElementDataType
enum class ElementType : int
{
    kFLOAT = 1,
    kFLOAT16 = 10,
    kBFLOAT16 = 16,
};

//! OrtCustomOpInputOutputCharacteristic
enum class Arity : int
{
    kREQUIRED = 0,
};

//! OrtMemType
enum class Memory : int
{
    kDEFAULT = 0,
};

//! OrtApi
struct Api
{
    void* slots[278];

#define VIMDEPLOY_SLOT(index, result, name, parameters, arguments)             \
    result name parameters const noexcept                                      \
    {                                                                          \
        return reinterpret_cast<result(*) parameters>(slots[index]) arguments; \
    }
    VIMDEPLOY_SLOT(0, OrtStatus*, CreateStatus, (Code code, char const* text), (code, text))
    VIMDEPLOY_SLOT(26, OrtStatus*, CreateCustomOpDomain, (char const* name, OrtCustomOpDomain** domain), (name, domain))
    VIMDEPLOY_SLOT(27, OrtStatus*, CustomOpDomainAdd, (OrtCustomOpDomain * domain, void const* op), (domain, op))
    VIMDEPLOY_SLOT(
        28, OrtStatus*, AddCustomOpDomain, (OrtSessionOptions * options, OrtCustomOpDomain* domain), (options, domain))
    VIMDEPLOY_SLOT(51, OrtStatus*, GetTensorMutableData, (OrtValue * value, void** data), (value, data))
    VIMDEPLOY_SLOT(
        61, OrtStatus*, GetDimensionsCount, (OrtTensorTypeAndShapeInfo const* info, size_t* count), (info, count))
    VIMDEPLOY_SLOT(62, OrtStatus*, GetDimensions, (OrtTensorTypeAndShapeInfo const* info, int64_t* dims, size_t count),
        (info, dims, count))
    VIMDEPLOY_SLOT(
        65, OrtStatus*, GetTensorTypeAndShape, (OrtValue const* value, OrtTensorTypeAndShapeInfo** info), (value, info))
    VIMDEPLOY_SLOT(85, OrtStatus*, KernelInfoGetFloat, (OrtKernelInfo const* info, char const* name, float* value),
        (info, name, value))
    VIMDEPLOY_SLOT(86, OrtStatus*, KernelInfoGetInt, (OrtKernelInfo const* info, char const* name, int64_t* value),
        (info, name, value))
    VIMDEPLOY_SLOT(87, OrtStatus*, KernelInfoGetString,
        (OrtKernelInfo const* info, char const* name, char* text, size_t* size), (info, name, text, size))
    VIMDEPLOY_SLOT(
        88, OrtStatus*, KernelContextGetInputCount, (OrtKernelContext const* context, size_t* count), (context, count))
    VIMDEPLOY_SLOT(90, OrtStatus*, KernelContextGetInput,
        (OrtKernelContext const* context, size_t i, OrtValue const** value), (context, i, value))
    VIMDEPLOY_SLOT(91, OrtStatus*, KernelContextGetOutput,
        (OrtKernelContext * context, size_t i, int64_t const* dims, size_t count, OrtValue** value),
        (context, i, dims, count, value))
    VIMDEPLOY_SLOT(93, void, ReleaseStatus, (OrtStatus * status), (status))
    VIMDEPLOY_SLOT(99, void, ReleaseTensorTypeAndShapeInfo, (OrtTensorTypeAndShapeInfo * info), (info))
    VIMDEPLOY_SLOT(163, OrtStatus*, KernelInfoGetInts,
        (OrtKernelInfo const* info, char const* name, int64_t* values, size_t* size), (info, name, values, size))
    VIMDEPLOY_SLOT(193, OrtStatus*, KernelContextGetGpuComputeStream, (OrtKernelContext const* context, void** stream),
        (context, stream))
    VIMDEPLOY_SLOT(249, OrtStatus*, KernelInfoGetConstantInput,
        (OrtKernelInfo const* info, size_t i, int* isConstant, OrtValue const** value), (info, i, isConstant, value))
    VIMDEPLOY_SLOT(274, OrtStatus*, KernelContextParallelFor,
        (OrtKernelContext const* context, void (*task)(void*, size_t), size_t count, size_t batches, void* data),
        (context, task, count, batches, data))
#undef VIMDEPLOY_SLOT
};

//! OrtApiBase
struct ApiBase
{
    Api const* (*getApi)(uint32_t version);
    char const* (*getVersionString)();
};

//! OrtCustomOp of version 18: what ONNX Runtime calls. Functions that it may find null are left out of the first part.
struct CustomOp
{
    uint32_t version;
    void* (*createKernel)(CustomOp const*, Api const*, OrtKernelInfo const*);
    char const* (*getName)(CustomOp const*);
    char const* (*getExecutionProviderType)(CustomOp const*);
    ElementType (*getInputType)(CustomOp const*, size_t);
    size_t (*getInputTypeCount)(CustomOp const*);
    ElementType (*getOutputType)(CustomOp const*, size_t);
    size_t (*getOutputTypeCount)(CustomOp const*);
    void (*kernelCompute)(void*, OrtKernelContext*);
    void (*kernelDestroy)(void*);
    Arity (*getInputCharacteristic)(CustomOp const*, size_t);
    Arity (*getOutputCharacteristic)(CustomOp const*, size_t);
    Memory (*getInputMemoryType)(CustomOp const*, size_t);
    int (*getVariadicInputMinArity)(CustomOp const*);
    int (*getVariadicInputHomogeneity)(CustomOp const*);
    int (*getVariadicOutputMinArity)(CustomOp const*);
    int (*getVariadicOutputHomogeneity)(CustomOp const*);
    OrtStatus* (*createKernelV2)(CustomOp const*, Api const*, OrtKernelInfo const*, void**);
    OrtStatus* (*kernelComputeV2)(void*, OrtKernelContext*);
    OrtStatus* (*inferOutputShape)(CustomOp const*, OrtShapeInferContext*);
    int (*getStartVersion)(CustomOp const*);
    int (*getEndVersion)(CustomOp const*);
    size_t (*getMayInplace)(int**, int**);
    void (*releaseMayInplace)(int*, int*);
    size_t (*getAliasMap)(int**, int**);
    void (*releaseAliasMap)(int*, int*);
};

} // namespace vimdeploy::ort
