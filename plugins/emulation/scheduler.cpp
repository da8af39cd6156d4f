//! \file scheduler.cpp
//! Runs kernels on the host: one fiber per CUDA thread, blocks in turn, ready fibers in seeded random order.
//!
//! Compiled without sanitizers even in their builds: the bookkeeping is shared by all fibers by design. What orders
//! CUDA threads, a barrier or a warp operation, is told to ThreadSanitizer by hand and nothing else is, so that two
//! accesses with no barrier between them are a race to it whatever order they happened to run in.
//!
//! Faults, which end the process with status 97: a barrier reached by a part of the block, a warp operation reached by
//! a part of its mask, threads of one block at different barriers.

#include "device_emulation.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <ucontext.h>
#include <vector>

#undef threadIdx
#undef blockIdx
#undef blockDim

#if defined(EMULATION_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(EMULATION_TSAN)
extern "C"
{
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace vimdeploy
{
namespace emulation
{
namespace
{

constexpr std::size_t kSTACK_BYTES = 256 * 1024;
constexpr int kWARP = 32;
constexpr int kFAULT_STATUS = 97;

enum class Status
{
    kREADY,
    kAT_BARRIER,
    kIN_WARP,
    kDONE,
};

struct Fiber
{
    ucontext_t context{};
    std::unique_ptr<char[]> stack;
    ThreadView view;
    PendingCopies pending;
    Status status{Status::kDONE};
    char const* file{nullptr};
    int line{0};
    void* payload{nullptr};
    int index{0};
    void* tsanFiber{nullptr};
};

//! Happens-before edges; two of each kind in turn, so that a late leaver of one does not see arrivals at the next.
struct Edges
{
    char barrier[2]{};
    char warp[2]{};
    char start{};
    char finish{};
};

struct Machine
{
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::function<void()> const* kernel{nullptr};
    ucontext_t context{};
    void* tsanFiber{nullptr};
    void const* stackBottom{nullptr};
    std::size_t stackSize{0};
    Fiber* running{nullptr};
    int threads{0};
    int atBarrier{0};
    std::vector<int> ready;
    std::vector<Edges> edges{1};
    unsigned barrierGeneration{0};
    std::vector<unsigned> warpGeneration;
    unsigned char* shared{nullptr};
    uint64_t random{1};
    uint64_t noiseSeed{0};
    uint64_t blockFilter{0};
};

Machine gMachine;

#if defined(EMULATION_TSAN)
void acquire(void* edge)
{
    __tsan_acquire(edge);
}
void release(void* edge)
{
    __tsan_release(edge);
}
#else
void acquire(void* /* edge */) {}
void release(void* /* edge */) {}
#endif

uint64_t nextRandom() noexcept
{
    gMachine.random ^= gMachine.random << 13U;
    gMachine.random ^= gMachine.random >> 7U;
    gMachine.random ^= gMachine.random << 17U;
    return gMachine.random;
}

void switchToMachine() noexcept
{
    Fiber& fiber = *gMachine.running;
#if defined(EMULATION_ASAN)
    void* fakeStack = nullptr;
    __sanitizer_start_switch_fiber(&fakeStack, gMachine.stackBottom, gMachine.stackSize);
#endif
#if defined(EMULATION_TSAN)
    __tsan_switch_to_fiber(gMachine.tsanFiber, 1);
#endif
    swapcontext(&fiber.context, &gMachine.context);
#if defined(EMULATION_ASAN)
    __sanitizer_finish_switch_fiber(fakeStack, nullptr, nullptr);
#endif
}

void switchToFiber(Fiber& fiber) noexcept
{
    gMachine.running = &fiber;
#if defined(EMULATION_ASAN)
    void* fakeStack = nullptr;
    __sanitizer_start_switch_fiber(&fakeStack, fiber.stack.get(), kSTACK_BYTES);
#endif
#if defined(EMULATION_TSAN)
    __tsan_switch_to_fiber(fiber.tsanFiber, 1);
#endif
    swapcontext(&gMachine.context, &fiber.context);
#if defined(EMULATION_ASAN)
    __sanitizer_finish_switch_fiber(fakeStack, nullptr, nullptr);
#endif
}

void makeReady(Fiber& fiber)
{
    fiber.status = Status::kREADY;
    gMachine.ready.push_back(fiber.index);
}

//! A fiber serves one thread of every block after the other.
void fiberMain()
{
#if defined(EMULATION_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &gMachine.stackBottom, &gMachine.stackSize);
#endif
    for (;;)
    {
        Fiber& fiber = *gMachine.running;
        acquire(&gMachine.edges[0].start);
        (*gMachine.kernel)();
        if (fiber.pending.count != 0)
        {
            fault("a thread ended with asynchronous copies it had not waited for");
        }
        release(&gMachine.edges[0].finish);
        fiber.status = Status::kDONE;
        switchToMachine();
    }
}

void prepareFibers(int threads)
{
    while (static_cast<int>(gMachine.fibers.size()) < threads)
    {
        auto fiber = std::make_unique<Fiber>();
        fiber->stack = std::make_unique<char[]>(kSTACK_BYTES);
        fiber->index = static_cast<int>(gMachine.fibers.size());
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = fiber->stack.get();
        fiber->context.uc_stack.ss_size = kSTACK_BYTES;
        fiber->context.uc_link = nullptr;
        makecontext(&fiber->context, fiberMain, 0);
#if defined(EMULATION_TSAN)
        fiber->tsanFiber = __tsan_create_fiber(0);
#endif
        gMachine.fibers.push_back(std::move(fiber));
    }
}

[[noreturn]] void reportStuck()
{
    std::fprintf(stderr, "EMULATION FAULT: threads wait for others that will not come\n");
    for (int i = 0; i < gMachine.threads; ++i)
    {
        Fiber const& fiber = *gMachine.fibers[static_cast<std::size_t>(i)];
        if (fiber.status != Status::kDONE && (i % kWARP == 0 || fiber.status == Status::kIN_WARP))
        {
            std::fprintf(stderr, "  thread %d waits at %s:%d\n", i, fiber.file, fiber.line);
        }
    }
    std::_Exit(kFAULT_STATUS);
}

void runBlock(dim3 grid, dim3 block, uint64_t blockIndex)
{
    for (int i = 0; i < gMachine.threads; ++i)
    {
        Fiber& fiber = *gMachine.fibers[static_cast<std::size_t>(i)];
        auto const index = static_cast<unsigned>(i);
        fiber.view.thread = dim3(index % block.x, index / block.x % block.y, index / (block.x * block.y));
        fiber.view.block
            = dim3(static_cast<unsigned>(blockIndex % grid.x), static_cast<unsigned>(blockIndex / grid.x % grid.y),
                static_cast<unsigned>(blockIndex / (static_cast<uint64_t>(grid.x) * grid.y)));
        fiber.view.blockSize = block;
        makeReady(fiber);
    }
    release(&gMachine.edges[0].start);
    while (!gMachine.ready.empty())
    {
        std::size_t const pick = nextRandom() % gMachine.ready.size();
        int const index = gMachine.ready[pick];
        gMachine.ready[pick] = gMachine.ready.back();
        gMachine.ready.pop_back();
        switchToFiber(*gMachine.fibers[static_cast<std::size_t>(index)]);
    }
    for (int i = 0; i < gMachine.threads; ++i)
    {
        if (gMachine.fibers[static_cast<std::size_t>(i)]->status != Status::kDONE)
        {
            reportStuck();
        }
    }
    acquire(&gMachine.edges[0].finish);
}

} // namespace

ThreadView const& current() noexcept
{
    return gMachine.running->view;
}

unsigned char* dynamicShared() noexcept
{
    return gMachine.shared;
}

PendingCopies& pendingCopies() noexcept
{
    return gMachine.running->pending;
}

void fault(char const* what) noexcept
{
    std::fprintf(stderr, "EMULATION FAULT: %s\n", what);
    std::_Exit(kFAULT_STATUS);
}

void syncThreads(char const* file, int line) noexcept
{
    Fiber& fiber = *gMachine.running;
    fiber.file = file;
    fiber.line = line;
    fiber.status = Status::kAT_BARRIER;
    char* const edge = &gMachine.edges[0].barrier[gMachine.barrierGeneration % 2];
    release(edge);
    if (++gMachine.atBarrier == gMachine.threads)
    {
        gMachine.atBarrier = 0;
        ++gMachine.barrierGeneration;
        for (int i = 0; i < gMachine.threads; ++i)
        {
            Fiber& other = *gMachine.fibers[static_cast<std::size_t>(i)];
            if (other.line != line)
            {
                fault("threads of one block meet at different barriers");
            }
            makeReady(other);
        }
    }
    switchToMachine();
    acquire(edge);
}

void warpCollective(void* payload, void (*combine)(void** payloads), char const* file, int line) noexcept
{
    Fiber& fiber = *gMachine.running;
    auto const first = static_cast<std::size_t>(fiber.index / kWARP * kWARP);
    fiber.file = file;
    fiber.line = line;
    fiber.payload = payload;
    fiber.status = Status::kIN_WARP;
    std::size_t const warp = first / kWARP;
    char* const edge = &gMachine.edges[1 + warp].warp[gMachine.warpGeneration[warp] % 2];
    release(edge);
    void* payloads[kWARP]{};
    bool complete = true;
    for (std::size_t lane = 0; lane < kWARP && complete; ++lane)
    {
        if (first + lane >= static_cast<std::size_t>(gMachine.threads))
        {
            fault("a warp operation names lanes that do not exist");
        }
        Fiber const& other = *gMachine.fibers[first + lane];
        complete = other.status == Status::kIN_WARP && other.line == line;
        payloads[lane] = other.payload;
    }
    if (complete)
    {
        ++gMachine.warpGeneration[warp];
        acquire(edge);
        if (combine != nullptr)
        {
            combine(payloads);
        }
        release(edge);
        for (std::size_t lane = 0; lane < kWARP; ++lane)
        {
            makeReady(*gMachine.fibers[first + lane]);
        }
    }
    switchToMachine();
    acquire(edge);
}

cudaError_t launch(dim3 grid, dim3 block, std::size_t sharedBytes, std::function<void()> const& kernel)
{
    static std::mutex mutex; // one machine, whoever calls
    std::lock_guard<std::mutex> const lock(mutex);
    gMachine.threads = static_cast<int>(block.x * block.y * block.z);
    if (gMachine.threads > 1024 || gMachine.threads == 0 || sharedBytes > 48 * 1024)
    {
        return cudaErrorInvalidValue;
    }
#if defined(EMULATION_TSAN)
    gMachine.tsanFiber = __tsan_get_current_fiber();
#endif
    gMachine.kernel = &kernel;
    prepareFibers(gMachine.threads);
    std::size_t const warps = (static_cast<std::size_t>(gMachine.threads) + kWARP - 1) / kWARP;
    if (gMachine.edges.size() < warps + 1)
    {
        gMachine.edges.resize(warps + 1);
        gMachine.warpGeneration.resize(warps);
    }
    uint64_t const blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; ++i)
    {
        if (gMachine.blockFilter != 0 && i >= gMachine.blockFilter && i + gMachine.blockFilter < blocks)
        {
            i = blocks - gMachine.blockFilter;
        }
        // An exact-size block of its own, so that AddressSanitizer sees the byte after it; NaN bits, so that a read of
        // what nobody wrote shows.
        gMachine.shared = static_cast<unsigned char*>(std::malloc(sharedBytes == 0 ? 1 : sharedBytes));
        std::memset(gMachine.shared, 0xff, sharedBytes);
        runBlock(grid, block, i);
        std::free(gMachine.shared);
        gMachine.shared = nullptr;
    }
    return cudaSuccess;
}

void setSeed(uint64_t seed) noexcept
{
    gMachine.random = seed * 0x9e3779b97f4a7c15U + 1;
    gMachine.noiseSeed = seed;
}

void setBlockFilter(uint64_t count) noexcept
{
    gMachine.blockFilter = count;
}

float noise(float x) noexcept
{
    uint32_t word;
    std::memcpy(&word, &x, sizeof(word));
    uint64_t const mixed = (word + gMachine.noiseSeed * 0x632be59bd9b4e019U) * 0x9e3779b97f4a7c15U;
    return static_cast<float>(static_cast<int32_t>(mixed >> 32U)) * (1.0F / 2147483648.0F);
}

} // namespace emulation
} // namespace vimdeploy
