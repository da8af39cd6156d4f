//! \file cpu_provider.cpp
//! The ops for ONNX Runtime's CPU provider. `RegisterCustomOps` is what every binding of ONNX Runtime calls when it is
//! given this library.

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "onnxruntime/node.h"

#include <atomic>
#include <exception>
#include <thread>

namespace vimdeploy::ort
{

namespace
{

//! How many threads the session has, as far as its calls have shown: ONNX Runtime does not tell. It decides only how
//! work is cut, never what comes out.
class SeenThreads
{
public:
    //! \return the number to cut for. Now and then it is the machine's, so that a pool that was busy is seen whole.
    int64_t next() noexcept
    {
        constexpr uint64_t kPERIOD = 32;
        constexpr uint64_t kLOOKS = 2;
        bool const look = mCalls.fetch_add(1, std::memory_order_relaxed) % kPERIOD < kLOOKS;
        int64_t const most = mMost.load(std::memory_order_relaxed);
        int64_t const machine = static_cast<int64_t>(std::thread::hardware_concurrency());
        return look || most == 0 ? (machine < 1 ? 1 : machine) : most;
    }

    void saw(int64_t threads) noexcept
    {
        int64_t most = mMost.load(std::memory_order_relaxed);
        while (threads > most && !mMost.compare_exchange_weak(most, threads, std::memory_order_relaxed))
        {
        }
    }

private:
    std::atomic<uint64_t> mCalls{0};
    std::atomic<int64_t> mMost{0};
};

//! The session's own pool.
class RuntimeThreads final : public cpu::Threads
{
public:
    RuntimeThreads(Api const& api, OrtKernelContext const* context, SeenThreads& seen) noexcept
        : mApi(api)
        , mContext(context)
        , mSeen(seen)
        , mCount(seen.next())
    {
    }

    cpu::Status run(int64_t count, void (*task)(void*, int64_t), void* data) noexcept override
    {
        Work work{task, data};
        OrtStatus* const status
            = mApi.KernelContextParallelFor(mContext, &Work::run, static_cast<size_t>(count), 0, &work);
        if (count > 1)
        {
            mSeen.saw(work.most.load(std::memory_order_relaxed));
        }
        if (status != nullptr)
        {
            mApi.ReleaseStatus(status);
            return cpu::Status::error("ONNX Runtime's thread pool refused the work");
        }
        return {};
    }

    [[nodiscard]] int64_t count() const noexcept override
    {
        return mCount;
    }

private:
    struct Work
    {
        void (*task)(void*, int64_t);
        void* data;
        std::atomic<int64_t> active{0};
        std::atomic<int64_t> most{0};

        static void run(void* self, size_t i) noexcept
        {
            auto& work = *static_cast<Work*>(self);
            int64_t const now = work.active.fetch_add(1, std::memory_order_relaxed) + 1;
            int64_t most = work.most.load(std::memory_order_relaxed);
            while (now > most && !work.most.compare_exchange_weak(most, now, std::memory_order_relaxed))
            {
            }
            work.task(work.data, static_cast<int64_t>(i));
            work.active.fetch_sub(1, std::memory_order_relaxed);
        }
    };

    Api const& mApi;
    OrtKernelContext const* mContext;
    SeenThreads& mSeen;
    int64_t mCount;
};

struct Kernel
{
    Api const& api;
    DescribedOp const& described;
    std::unique_ptr<cpu::Op> op;
    SeenThreads threads;
};

//! Calls `body` and makes a status of what it throws: nothing may cross the C interface.
template <typename BODY>
OrtStatus* guarded(Api const& api, BODY body) noexcept
{
    try
    {
        return body();
    }
    catch (std::exception const& error)
    {
        return api.CreateStatus(Code::kFAIL, error.what());
    }
    catch (...)
    {
        return api.CreateStatus(Code::kFAIL, "vimdeploy: an unknown exception");
    }
}

std::unique_ptr<cpu::Op> makeOp(cpu::Signature const& signature, Attributes attributes)
{
    cpu::Kernels const& kernels = cpu::kernels();
    if (&signature == &cpu::kCAUSAL_CONV1D)
    {
        return cpu::makeConv(std::move(attributes.conv), kernels);
    }
    if (&signature == &cpu::kSELECTIVE_SCAN || &signature == &cpu::kSELECTIVE_SCAN_NO_GATE)
    {
        return cpu::makeScan(&signature == &cpu::kSELECTIVE_SCAN, std::move(attributes.scan), kernels);
    }
    return cpu::makeDelta(&signature == &cpu::kSELECTIVE_SCAN_DELTA, attributes.delta, kernels);
}

//! Packs the parameters once where all of them are constants of the graph.
OrtStatus* prepare(Kernel& kernel, OrtKernelInfo const* info)
{
    Api const& api = kernel.api;
    cpu::Signature const& signature = *kernel.described.signature;
    Inputs inputs;
    inputs.tensors[0].element = elementOf(kernel.described.type);
    size_t parameters = 0;
    for (size_t i = 0; i < signature.inputCount; ++i)
    {
        if (!kernel.op->isParameter(i))
        {
            continue;
        }
        int isConstant = 0;
        OrtValue const* value = nullptr;
        VIMDEPLOY_TRY(api.KernelInfoGetConstantInput(info, i, &isConstant, &value));
        if (isConstant == 0 || value == nullptr)
        {
            return nullptr;
        }
        VIMDEPLOY_TRY(inputs.read(api, value, kernel.described, i));
        ++parameters;
    }
    return parameters == 0 ? nullptr : toOrt(api, kernel.op->prepare(inputs.tensors));
}

OrtStatus* createKernel(CustomOp const* self, Api const* api, OrtKernelInfo const* info, void** created) noexcept
{
    return guarded(*api,
        [&]() -> OrtStatus*
        {
            auto const& described = *static_cast<DescribedOp const*>(self);
            Attributes attributes;
            VIMDEPLOY_TRY(readAttributes(*api, info, *described.signature, attributes));
            std::unique_ptr<Kernel> kernel(
                new Kernel{*api, described, makeOp(*described.signature, std::move(attributes)), {}});
            VIMDEPLOY_TRY(prepare(*kernel, info));
            *created = kernel.release();
            return nullptr;
        });
}

OrtStatus* compute(void* self, OrtKernelContext* context) noexcept
{
    auto& kernel = *static_cast<Kernel*>(self);
    Api const& api = kernel.api;
    return guarded(api,
        [&]() -> OrtStatus*
        {
            Inputs inputs;
            VIMDEPLOY_TRY(inputs.readAll(api, context, kernel.described));
            cpu::Sizes sizes;
            std::vector<int64_t> shape;
            VIMDEPLOY_TRY(toOrt(api, kernel.op->check(inputs.tensors, inputs.count, sizes, shape)));
            OrtValue* output = nullptr;
            VIMDEPLOY_TRY(api.KernelContextGetOutput(context, 0, shape.data(), shape.size(), &output));
            void* data = nullptr;
            VIMDEPLOY_TRY(api.GetTensorMutableData(output, &data));
            RuntimeThreads threads(api, context, kernel.threads);
            return toOrt(api, kernel.op->run(inputs.tensors, sizes, data, threads));
        });
}

constexpr cpu::Signature const* kSIGNATURES[] = {&cpu::kCAUSAL_CONV1D, &cpu::kSELECTIVE_SCAN,
    &cpu::kSELECTIVE_SCAN_NO_GATE, &cpu::kSELECTIVE_SCAN_DELTA, &cpu::kSELECTIVE_SCAN_DELTA_NO_GATE};
constexpr ElementType kTYPES[] = {ElementType::kFLOAT, ElementType::kFLOAT16, ElementType::kBFLOAT16};
constexpr size_t kOPS = std::size(kSIGNATURES) * std::size(kTYPES);

struct AllOps
{
    DescribedOp ops[kOPS];

    AllOps() noexcept
    {
        size_t i = 0;
        for (cpu::Signature const* signature : kSIGNATURES)
        {
            for (ElementType type : kTYPES)
            {
                ops[i] = describe(*signature, type, nullptr);
                ops[i].createKernelV2 = &createKernel;
                ops[i].kernelComputeV2 = &compute;
                ops[i].kernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
                ++i;
            }
        }
    }
};

} // namespace

} // namespace vimdeploy::ort

extern "C" __attribute__((visibility("default"))) vimdeploy::ort::OrtStatus* RegisterCustomOps(
    vimdeploy::ort::OrtSessionOptions* options, vimdeploy::ort::ApiBase const* base) noexcept
{
    using namespace vimdeploy::ort;
    Api const* const api = base->getApi(kAPI_VERSION);
    if (api == nullptr)
    {
        // Of an older version only what makes a status is needed: success would leave the ops out in silence.
        Api const* const oldest = base->getApi(1);
        return oldest == nullptr ? nullptr
                                 : oldest->CreateStatus(Code::kFAIL, "vimdeploy's ops need ONNX Runtime 1.18 or newer");
    }
    VIMDEPLOY_TRY(toOrt(*api, vimdeploy::cpu::checkEnvironment()));
    static AllOps const all;
    return addToSession(*api, options, all.ops, kOPS);
}
