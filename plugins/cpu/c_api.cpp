#include "cpu/c_api.h"

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

#include <atomic>
#include <cstring>
#include <exception>
#include <thread>

namespace
{

using namespace vimdeploy::cpu;

//! Threads of one call: short-lived, because a pool kept here would not survive a fork of the caller.
class OwnThreads final : public Threads
{
public:
    explicit OwnThreads(int64_t count) noexcept
        : mCount(count)
    {
    }

    Status run(int64_t count, void (*task)(void*, int64_t), void* data) noexcept override
    {
        std::atomic<int64_t> next{0};
        auto const work = [&]() noexcept
        {
            for (int64_t i = next++; i < count; i = next++)
            {
                task(data, i);
            }
        };
        std::vector<std::thread> others;
        try
        {
            others.reserve(static_cast<size_t>(mCount));
            for (int64_t i = 1; i < mCount && i < count; ++i)
            {
                others.emplace_back(work);
            }
        }
        catch (std::exception const&)
        {
            // Fewer threads compute the same.
        }
        work();
        for (std::thread& other : others)
        {
            other.join();
        }
        return {};
    }

    [[nodiscard]] int64_t count() const noexcept override
    {
        return mCount;
    }

private:
    int64_t mCount;
};

std::unique_ptr<Op> makeOp(vimdeploy_ops_call const& call, Signature const& signature, Kernels const& kernels)
{
    std::vector<int64_t> directions;
    std::vector<int64_t> columnMajor;
    if (call.directions != nullptr)
    {
        directions.assign(call.directions, call.directions + call.groups);
    }
    if (call.column_major != nullptr)
    {
        columnMajor.assign(call.column_major, call.column_major + call.groups);
    }
    if (&signature == &kCAUSAL_CONV1D)
    {
        return makeConv({std::move(directions), call.silu != 0}, kernels);
    }
    if (&signature == &kSELECTIVE_SCAN || &signature == &kSELECTIVE_SCAN_NO_GATE)
    {
        return makeScan(&signature == &kSELECTIVE_SCAN,
            {std::move(directions), std::move(columnMajor), call.height, call.scale}, kernels);
    }
    return makeDelta(&signature == &kSELECTIVE_SCAN_DELTA, {call.delta_softplus, call.reverse}, kernels);
}

Status runCall(vimdeploy_ops_call const& call)
{
    constexpr uint64_t kMOST_GROUPS = 1U << 16;
    Signature const* const signature = call.op == nullptr ? nullptr : findSignature(call.op);
    if (signature == nullptr)
    {
        return Status::error("there is no op of that name");
    }
    Kernels const* const kernels = call.isa == nullptr ? &vimdeploy::cpu::kernels() : kernelsNamed(call.isa);
    if (kernels == nullptr)
    {
        return Status::error("%s: this machine has no such kernels", signature->op);
    }
    if (call.threads < 1 || call.inputs == nullptr || call.groups > kMOST_GROUPS)
    {
        return Status::error("%s: threads, inputs or groups do not fit", signature->op);
    }
    std::unique_ptr<Op> const op = makeOp(call, *signature, *kernels);
    Tensor tensors[kMAX_INPUTS] = {};
    for (size_t i = 0; i < call.input_count && i < kMAX_INPUTS; ++i)
    {
        vimdeploy_ops_tensor const& given = call.inputs[i];
        if (given.element < 0 || given.element > 2)
        {
            return Status::error("%s: input %zu has an unknown element type", signature->op, i);
        }
        tensors[i] = {given.data, given.dims, given.rank, static_cast<Element>(given.element)};
    }
    Sizes sizes;
    std::vector<int64_t> shape;
    if (Status status = op->check(tensors, call.input_count, sizes, shape); status.failed())
    {
        return status;
    }
    uint64_t bytes = signature->outputIsT && tensors[0].element != Element::kFLOAT32 ? 2U : 4U;
    for (int64_t size : shape)
    {
        bytes *= static_cast<uint64_t>(size);
    }
    if (call.output_size != bytes || (bytes > 0 && call.output == nullptr))
    {
        return Status::error("%s: its output needs %llu bytes, not %llu", signature->op,
            static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(call.output_size));
    }
    OwnThreads threads(call.threads);
    return op->run(tensors, sizes, call.output, threads);
}

int32_t answer(Status const& status, char* text, uint64_t size) noexcept
{
    if (text != nullptr && size > 0)
    {
        std::snprintf(text, size, "%s", status.text());
    }
    return status.failed() ? VIMDEPLOY_OPS_INVALID : VIMDEPLOY_OPS_OK;
}

} // namespace

int32_t vimdeploy_ops_abi(void)
{
    return VIMDEPLOY_OPS_ABI;
}

char const* vimdeploy_ops_isa(void)
{
    return kernels().name;
}

int32_t vimdeploy_ops_has_isa(char const* name)
{
    return name != nullptr && kernelsNamed(name) != nullptr ? 1 : 0;
}

int32_t vimdeploy_ops_signature(char const* op, char* text, uint64_t size)
{
    Signature const* const signature = op == nullptr ? nullptr : findSignature(op);
    if (signature == nullptr || text == nullptr || size == 0)
    {
        return VIMDEPLOY_OPS_INVALID;
    }
    size_t length = 0;
    for (size_t i = 0; i < signature->inputCount && length < size; ++i)
    {
        Input const& input = signature->inputs[i];
        int const written = std::snprintf(
            text + length, size - length, "%s %s %s; ", input.name, input.isT ? "T" : "float", input.shape);
        length += static_cast<size_t>(written);
    }
    if (length < size)
    {
        std::snprintf(
            text + length, size - length, "-> %s %s", signature->outputIsT ? "T" : "float", signature->outputShape);
    }
    return VIMDEPLOY_OPS_OK;
}

int32_t vimdeploy_ops_run(vimdeploy_ops_call const* call, char* text, uint64_t size)
{
    if (call == nullptr || call->struct_size != sizeof(vimdeploy_ops_call))
    {
        return answer(Status::error("the call is of another version of this library"), text, size);
    }
    try
    {
        return answer(runCall(*call), text, size);
    }
    catch (std::exception const& error)
    {
        return answer(Status::error("%s", error.what()), text, size);
    }
}

int32_t vimdeploy_ops_function(char const* isa, char const* function, float const* x, float* y, uint64_t count)
{
    Kernels const* const chosen = isa == nullptr ? &kernels() : kernelsNamed(isa);
    if (chosen == nullptr || function == nullptr || x == nullptr || y == nullptr || count > INT64_MAX)
    {
        return VIMDEPLOY_OPS_INVALID;
    }
    bool const known = std::strcmp(function, "exp2") == 0 || std::strcmp(function, "softplus") == 0
        || std::strcmp(function, "silu") == 0;
    if (!known)
    {
        return VIMDEPLOY_OPS_INVALID;
    }
    auto const compute = *function == 'e' ? chosen->exp2 : (function[1] == 'o' ? chosen->softplus : chosen->silu);
    compute(x, y, static_cast<int64_t>(count));
    return VIMDEPLOY_OPS_OK;
}
