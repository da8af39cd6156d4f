#include "cpu/ops.h"
#include "cpu/parallel.h"

#include <algorithm>
#include <utility>

namespace vimdeploy::cpu
{

namespace
{

//! \return an error unless `values` holds one of two numbers per group.
Status checkPerGroup(
    char const* op, char const* name, std::vector<int64_t> const& values, int64_t groups, int64_t one, int64_t other)
{
    bool const known = std::all_of(values.begin(), values.end(), [=](int64_t v) { return v == one || v == other; });
    if (static_cast<int64_t>(values.size()) != groups || !known)
    {
        return Status::error("%s: %s must hold %lld or %lld for each of %lld groups", op, name,
            static_cast<long long>(one), static_cast<long long>(other), static_cast<long long>(groups));
    }
    return {};
}

Status checkLeast(char const* op, char const* what, int64_t value)
{
    return value >= 1 ? Status{} : Status::error("%s: %s must be at least 1", op, what);
}

class ConvOp final : public Op
{
public:
    ConvOp(ConvAttributes attributes, Kernels const& kernels)
        : Op(kCAUSAL_CONV1D, 0b110U, kernels)
        , mSilu(attributes.silu)
        , mDirections(std::move(attributes.directions))
        , mBackward(new bool[mDirections.size() + 1])
    {
        std::transform(
            mDirections.begin(), mDirections.end(), mBackward.get(), [](int64_t direction) { return direction == -1; });
    }

protected:
    [[nodiscard]] Status checkAttributes(Sizes const& sizes) const noexcept override
    {
        if (Status status = checkLeast(mSignature.op, "the width of weight", sizes['K']); status.failed())
        {
            return status;
        }
        return checkPerGroup(mSignature.op, "directions", mDirections, sizes['G'], 1, -1);
    }

    [[nodiscard]] bool pack(Values const& values, Sizes const& sizes, Buffer& packed) const noexcept override
    {
        ConvParameters const parameters{sizes['E'], sizes['K'], sizes['G'], values[1], values[2]};
        if (!packed.take(packedConv(parameters, mKernels.lanes)))
        {
            return false;
        }
        mKernels.packConv(parameters, packed.data());
        return true;
    }

    Status compute(Values const& values, float const* packed, Sizes const& sizes, float* output,
        Threads& threads) const noexcept override
    {
        constexpr int64_t kTOKENS = 64;
        ConvTask const task{sizes['B'], sizes['L'], sizes['E'], sizes['K'], sizes['G'], mSilu, mBackward.get(),
            values[0], packed, output};
        int64_t const pieces = (task.length + kTOKENS - 1) / kTOKENS;
        return parallel(threads, task.groups * task.batch * pieces,
            [&](int64_t i)
            {
                int64_t const start = i % pieces * kTOKENS;
                int64_t const row = i / pieces;
                mKernels.conv(task, row / task.batch, row % task.batch, start, std::min(start + kTOKENS, task.length));
            });
    }

private:
    bool mSilu;
    std::vector<int64_t> mDirections;
    std::unique_ptr<bool[]> mBackward;
};

class ScanOp final : public Op
{
public:
    ScanOp(bool gated, ScanAttributes attributes, Kernels const& kernels)
        : Op(gated ? kSELECTIVE_SCAN : kSELECTIVE_SCAN_NO_GATE, 0b111100U, kernels)
        , mAttributes(std::move(attributes))
    {
    }

protected:
    [[nodiscard]] Status checkAttributes(Sizes const& sizes) const noexcept override
    {
        char const* const op = mSignature.op;
        for (Status const& status : {checkLeast(op, "d_state, the last size of A,", sizes['N']),
                 checkLeast(op, "dt_rank, the last size of dt_weight,", sizes['R']),
                 checkLeast(op, "the number of groups", sizes['G']),
                 checkPerGroup(op, "directions", mAttributes.directions, sizes['G'], 1, -1),
                 checkPerGroup(op, "column_major", mAttributes.columnMajor, sizes['G'], 0, 1)})
        {
            if (status.failed())
            {
                return status;
            }
        }
        int64_t const height = mAttributes.height;
        auto const& columnMajor = mAttributes.columnMajor;
        bool const grid = std::any_of(columnMajor.begin(), columnMajor.end(), [](int64_t c) { return c == 1; });
        if (grid && (height < 1 || sizes['L'] % height != 0))
        {
            return Status::error("%s: %lld tokens do not form a grid of height %lld", op,
                static_cast<long long>(sizes['L']), static_cast<long long>(height));
        }
        return {};
    }

    [[nodiscard]] bool pack(Values const& values, Sizes const& sizes, Buffer& packed) const noexcept override
    {
        ScanParameters const parameters{
            sizes['E'], sizes['N'], sizes['R'], sizes['G'], values[2], values[3], values[4], values[5]};
        if (!packed.take(packedScan(parameters, mKernels.lanes)))
        {
            return false;
        }
        mKernels.packScan(parameters, packed.data());
        return true;
    }

    Status compute(Values const& values, float const* packed, Sizes const& sizes, float* output,
        Threads& threads) const noexcept override
    {
        std::unique_ptr<Walk[]> const walks(new (std::nothrow) Walk[mAttributes.directions.size()]);
        int64_t const blocks = blocksOf(sizes['E'], 1, mKernels.lanes);
        Buffer state;
        if (walks == nullptr || !state.take(sizes['B'] * blocks, sizes['N'] * mKernels.lanes))
        {
            return Status::error("%s: no memory for its states", mSignature.op);
        }
        for (size_t g = 0; g < mAttributes.directions.size(); ++g)
        {
            walks[g]
                = {sizes['L'], mAttributes.height, mAttributes.directions[g] == -1, mAttributes.columnMajor[g] == 1};
        }
        int64_t const rows = sizes['B'] * sizes['L'];
        ScanTask task{};
        task.batch = sizes['B'];
        task.channels = sizes['E'];
        task.states = sizes['N'];
        task.rank = sizes['R'];
        task.groups = sizes['G'];
        task.walks = walks.get();
        task.scale = mAttributes.scale;
        task.u = values[0];
        task.uGroupStride = sizes.shared(0) ? 0 : rows * task.channels;
        task.xDbl = values[1];
        task.xGroupStride = sizes.shared(1) ? 0 : rows * (task.rank + 2 * task.states);
        task.packed = packed;
        task.z = values[6];
        task.y = output;
        task.state = state.data();
        int64_t const piece = blocksPerPiece(task.batch, blocks, threads.count(), mKernels.lanes);
        int64_t const pieces = (blocks + piece - 1) / piece;
        return parallel(threads, task.batch * pieces,
            [&](int64_t i)
            {
                int64_t const first = i % pieces * piece;
                mKernels.scan(task, i / pieces, first, std::min(first + piece, blocks));
            });
    }

private:
    ScanAttributes mAttributes;
};

class DeltaOp final : public Op
{
public:
    DeltaOp(bool gated, DeltaAttributes attributes, Kernels const& kernels)
        // Nothing is packed ahead: how groups partition the channels is known only when B is.
        : Op(gated ? kSELECTIVE_SCAN_DELTA : kSELECTIVE_SCAN_DELTA_NO_GATE, 0U, kernels)
        , mAttributes(attributes)
    {
    }

protected:
    [[nodiscard]] Status checkAttributes(Sizes const& sizes) const noexcept override
    {
        char const* const op = mSignature.op;
        for (Status const& status : {checkLeast(op, "d_state, the last size of A,", sizes['N']),
                 checkLeast(op, "the number of groups", sizes['G'])})
        {
            if (status.failed())
            {
                return status;
            }
        }
        if (sizes['E'] % sizes['G'] != 0)
        {
            return Status::error("%s: %lld channels do not fall into %lld groups", op,
                static_cast<long long>(sizes['E']), static_cast<long long>(sizes['G']));
        }
        if ((mAttributes.softplus | 1) != 1 || (mAttributes.reverse | 1) != 1)
        {
            return Status::error("%s: delta_softplus and reverse must be 0 or 1", op);
        }
        return {};
    }

    [[nodiscard]] bool pack(Values const& values, Sizes const& sizes, Buffer& packed) const noexcept override
    {
        DeltaParameters const parameters{sizes['E'], sizes['N'], sizes['G'], values[2], values[5], values[6]};
        if (!packed.take(packedDelta(parameters, mKernels.lanes)))
        {
            return false;
        }
        mKernels.packDelta(parameters, packed.data());
        return true;
    }

    Status compute(Values const& values, float const* packed, Sizes const& sizes, float* output,
        Threads& threads) const noexcept override
    {
        int64_t const blocks = blocksOf(sizes['E'], sizes['G'], mKernels.lanes);
        Buffer state;
        if (!state.take(sizes['B'] * blocks, sizes['N'] * mKernels.lanes))
        {
            return Status::error("%s: no memory for its states", mSignature.op);
        }
        DeltaTask const task{sizes['B'], sizes['E'], sizes['N'], sizes['G'],
            Walk{sizes['L'], 1, mAttributes.reverse == 1, false}, mAttributes.softplus == 1, values[0], values[1],
            values[3], values[4], packed, values[7], output, state.data()};
        int64_t const piece = blocksPerPiece(task.batch, blocks, threads.count(), mKernels.lanes);
        int64_t const pieces = (blocks + piece - 1) / piece;
        return parallel(threads, task.batch * pieces,
            [&](int64_t i)
            {
                int64_t const first = i % pieces * piece;
                mKernels.scanDelta(task, i / pieces, first, std::min(first + piece, blocks));
            });
    }

private:
    DeltaAttributes mAttributes;
};

} // namespace

std::unique_ptr<Op> makeConv(ConvAttributes attributes, Kernels const& kernels)
{
    return std::make_unique<ConvOp>(std::move(attributes), kernels);
}

std::unique_ptr<Op> makeScan(bool gated, ScanAttributes attributes, Kernels const& kernels)
{
    return std::make_unique<ScanOp>(gated, std::move(attributes), kernels);
}

std::unique_ptr<Op> makeDelta(bool gated, DeltaAttributes attributes, Kernels const& kernels)
{
    return std::make_unique<DeltaOp>(gated, attributes, kernels);
}

} // namespace vimdeploy::cpu
