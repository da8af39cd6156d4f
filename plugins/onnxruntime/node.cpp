#include "onnxruntime/node.h"

#include <cstring>
#include <mutex>

namespace vimdeploy::ort
{

using cpu::Status;

namespace
{

DescribedOp const& described(CustomOp const* op) noexcept
{
    return *static_cast<DescribedOp const*>(op);
}

OrtStatus* readInts(Api const& api, OrtKernelInfo const* info, char const* name, std::vector<int64_t>& values)
{
    size_t size = 0;
    VIMDEPLOY_TRY(api.KernelInfoGetInts(info, name, nullptr, &size));
    values.resize(size);
    return api.KernelInfoGetInts(info, name, values.data(), &size);
}

OrtStatus* readActivation(Api const& api, OrtKernelInfo const* info, cpu::Signature const& signature, bool& silu)
{
    char text[16] = {};
    size_t size = sizeof text;
    OrtStatus* const status = api.KernelInfoGetString(info, "activation", text, &size);
    silu = std::strcmp(text, "silu") == 0;
    if (status != nullptr || silu || std::strcmp(text, "none") == 0)
    {
        return status;
    }
    return toOrt(api, Status::error("%s: activation must be silu or none, not %s", signature.op, text));
}

} // namespace

DescribedOp describe(cpu::Signature const& signature, ElementType type, char const* provider) noexcept
{
    DescribedOp op{};
    op.version = kAPI_VERSION;
    op.signature = &signature;
    op.type = type;
    op.provider = provider;
    op.getName = [](CustomOp const* self) { return described(self).signature->op; };
    op.getExecutionProviderType = [](CustomOp const* self) { return described(self).provider; };
    op.getInputType = [](CustomOp const* self, size_t i)
    {
        DescribedOp const& me = described(self);
        return i < me.signature->inputCount && me.signature->inputs[i].isT ? me.type : ElementType::kFLOAT;
    };
    op.getInputTypeCount = [](CustomOp const* self) { return described(self).signature->inputCount; };
    op.getOutputType = [](CustomOp const* self, size_t)
    { return described(self).signature->outputIsT ? described(self).type : ElementType::kFLOAT; };
    op.getOutputTypeCount = [](CustomOp const*) -> size_t { return 1; };
    op.getInputCharacteristic = [](CustomOp const*, size_t) { return Arity::kREQUIRED; };
    op.getOutputCharacteristic = [](CustomOp const*, size_t) { return Arity::kREQUIRED; };
    op.getInputMemoryType = [](CustomOp const*, size_t) { return Memory::kDEFAULT; };
    op.getVariadicInputMinArity = [](CustomOp const*) { return 1; };
    op.getVariadicInputHomogeneity = [](CustomOp const*) { return 1; };
    op.getVariadicOutputMinArity = [](CustomOp const*) { return 1; };
    op.getVariadicOutputHomogeneity = [](CustomOp const*) { return 1; };
    op.getStartVersion = [](CustomOp const*) { return 1; };
    op.getEndVersion = [](CustomOp const*) { return 1; };
    return op;
}

OrtStatus* addToSession(Api const& api, OrtSessionOptions* options, DescribedOp const* ops, size_t count) noexcept
{
    struct Known
    {
        Api const* api;
        OrtCustomOpDomain* domain;
    };
    // One domain for all sessions of one ONNX Runtime: sessions keep pointers to it and never give it back.
    constexpr size_t kMAX_RUNTIMES = 8;
    static std::mutex mutex;
    static Known known[kMAX_RUNTIMES];
    std::lock_guard<std::mutex> const lock(mutex);
    Known* place = known;
    while (place < known + kMAX_RUNTIMES && place->api != nullptr && place->api != &api)
    {
        ++place;
    }
    if (place == known + kMAX_RUNTIMES)
    {
        return api.CreateStatus(Code::kFAIL, "vimdeploy: too many ONNX Runtimes in one process");
    }
    if (place->api == nullptr)
    {
        OrtCustomOpDomain* domain = nullptr;
        VIMDEPLOY_TRY(api.CreateCustomOpDomain(kDOMAIN, &domain));
        for (size_t i = 0; i < count; ++i)
        {
            VIMDEPLOY_TRY(api.CustomOpDomainAdd(domain, static_cast<CustomOp const*>(ops + i)));
        }
        *place = {&api, domain};
    }
    return api.AddCustomOpDomain(options, place->domain);
}

OrtStatus* toOrt(Api const& api, Status const& status) noexcept
{
    return status.failed() ? api.CreateStatus(Code::kINVALID_ARGUMENT, status.text()) : nullptr;
}

cpu::Element elementOf(ElementType type) noexcept
{
    switch (type)
    {
    case ElementType::kFLOAT16: return cpu::Element::kFLOAT16;
    case ElementType::kBFLOAT16: return cpu::Element::kBFLOAT16;
    default: return cpu::Element::kFLOAT32;
    }
}

OrtStatus* readAttributes(
    Api const& api, OrtKernelInfo const* info, cpu::Signature const& signature, Attributes& attributes)
{
    if (&signature == &cpu::kCAUSAL_CONV1D)
    {
        VIMDEPLOY_TRY(readInts(api, info, "directions", attributes.conv.directions));
        return readActivation(api, info, signature, attributes.conv.silu);
    }
    if (&signature == &cpu::kSELECTIVE_SCAN || &signature == &cpu::kSELECTIVE_SCAN_NO_GATE)
    {
        VIMDEPLOY_TRY(readInts(api, info, "directions", attributes.scan.directions));
        VIMDEPLOY_TRY(readInts(api, info, "column_major", attributes.scan.columnMajor));
        VIMDEPLOY_TRY(api.KernelInfoGetInt(info, "height", &attributes.scan.height));
        return api.KernelInfoGetFloat(info, "scale", &attributes.scan.scale);
    }
    VIMDEPLOY_TRY(api.KernelInfoGetInt(info, "delta_softplus", &attributes.delta.softplus));
    return api.KernelInfoGetInt(info, "reverse", &attributes.delta.reverse);
}

OrtStatus* Inputs::read(Api const& api, OrtValue const* value, DescribedOp const& op, size_t i) noexcept
{
    cpu::Tensor& tensor = tensors[i];
    tensor.element = op.signature->inputs[i].isT ? elementOf(op.type) : cpu::Element::kFLOAT32;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    VIMDEPLOY_TRY(api.GetTensorTypeAndShape(value, &info));
    size_t rank = 0;
    OrtStatus* status = api.GetDimensionsCount(info, &rank);
    if (status == nullptr && rank <= kMAX_RANK)
    {
        status = api.GetDimensions(info, dims[i], rank);
    }
    api.ReleaseTensorTypeAndShapeInfo(info);
    VIMDEPLOY_TRY(status);
    tensor.rank
        = static_cast<int64_t>(rank); // one that is larger than the memory fits no op and is refused by its rank
    tensor.dims = dims[i];
    void* data = nullptr;
    VIMDEPLOY_TRY(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    tensor.data = data;
    return nullptr;
}

OrtStatus* Inputs::readAll(Api const& api, OrtKernelContext const* context, DescribedOp const& op) noexcept
{
    VIMDEPLOY_TRY(api.KernelContextGetInputCount(context, &count));
    if (count != op.signature->inputCount)
    {
        return toOrt(
            api, Status::error("%s: takes %zu inputs, not %zu", op.signature->op, op.signature->inputCount, count));
    }
    for (size_t i = 0; i < count; ++i)
    {
        OrtValue const* value = nullptr;
        VIMDEPLOY_TRY(api.KernelContextGetInput(context, i, &value));
        VIMDEPLOY_TRY(read(api, value, op, i));
    }
    return nullptr;
}

} // namespace vimdeploy::ort
