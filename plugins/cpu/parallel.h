//! \file parallel.h
//! Work cut into pieces for a pool.
#pragma once

#include "cpu/ops.h"

namespace vimdeploy::cpu
{

//! Runs everything where it is called.
class InThisThread final : public Threads
{
public:
    Status run(int64_t count, void (*task)(void*, int64_t), void* data) noexcept override
    {
        for (int64_t i = 0; i < count; ++i)
        {
            task(data, i);
        }
        return {};
    }

    [[nodiscard]] int64_t count() const noexcept override
    {
        return 1;
    }
};

//! Calls body(i) for every i below `count`.
template <typename BODY>
Status parallel(Threads& threads, int64_t count, BODY body) noexcept
{
    return threads.run(count, [](void* data, int64_t i) { (*static_cast<BODY*>(data))(i); }, &body);
}

//! Blocks of channels per piece, so that `threads` have equal work over the samples: all of them where one thread runs
//! or every thread has whole samples, because rows that are read once are read whole.
inline int64_t blocksPerPiece(int64_t batch, int64_t blocks, int64_t threads, int64_t lanes) noexcept
{
    constexpr int64_t kLEAST_CHANNELS = 64;
    constexpr int64_t kENOUGH_PER_THREAD = 4;
    int64_t const least = (kLEAST_CHANNELS + lanes - 1) / lanes;
    int64_t pieces = 1;
    while ((batch * pieces) % threads != 0 && batch * pieces < kENOUGH_PER_THREAD * threads)
    {
        ++pieces;
    }
    int64_t const size = (blocks + pieces - 1) / pieces;
    int64_t const bounded = size < least ? least : size;
    return bounded < blocks ? bounded : blocks;
}

} // namespace vimdeploy::cpu
