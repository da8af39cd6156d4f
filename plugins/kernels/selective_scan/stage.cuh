//! \file stage.cuh
//! From global memory to what the scan reads: tiles of u and x_dbl, x_dbl as float32 rows, dt_weight transposed.
//!
//! A tile is copied raw (cp.async, the widest word its rows allow) while the tile before it is scanned; only then is it
//! converted, once, by all threads of the side. Index arithmetic is advanced, not divided: generic index math in
//! two-byte steps cost 40 % of a scan.
#pragma once

#include "params.cuh"

namespace vimdeploy
{
namespace scan
{

//! Tokens [first, first + count) of the walk; count may be short at the end of the sequence.
struct Tile
{
    int32_t first;
    int32_t count;
};

//! Where the walk's position lies in memory. Column-major: position p is column p / H, row p % H of an H x W grid.
__device__ __forceinline__ int64_t tokenOf(Params const& p, int32_t position)
{
    if (!p.columnMajor)
    {
        return position;
    }
    uint32_t const column = quotient(static_cast<uint32_t>(position), p.gridHeight);
    uint32_t const row = static_cast<uint32_t>(position) - column * p.gridHeight.divisor;
    return static_cast<int64_t>(row) * p.gridWidth + column;
}

//! Walks the cells of rows `width` wide in steps of the side's thread count.
struct CellWalker
{
    int32_t row;
    int32_t column;
    int32_t rowStep;
    int32_t columnStep;
    int32_t width;

    __device__ __forceinline__ CellWalker(int32_t thread, FastDivisor const& cellsPerRow)
        : row(static_cast<int32_t>(quotient(static_cast<uint32_t>(thread), cellsPerRow)))
        , column(thread - row * static_cast<int32_t>(cellsPerRow.divisor))
        , rowStep(static_cast<int32_t>(quotient(kSIDE_THREADS, cellsPerRow)))
        , columnStep(kSIDE_THREADS - rowStep * static_cast<int32_t>(cellsPerRow.divisor))
        , width(static_cast<int32_t>(cellsPerRow.divisor))
    {
    }

    __device__ __forceinline__ void next()
    {
        row += rowStep;
        column += columnStep;
        if (column >= width)
        {
            column -= width;
            ++row;
        }
    }
};

//! Starts copying `tile` of x_dbl in words of kBYTES. Row-major, a tile is one contiguous run.
template <int kBYTES>
__device__ __forceinline__ void copyRows(
    Params const& p, unsigned char* target, unsigned char const* source, Tile tile, CellWalker cells)
{
    int32_t const rowBytes = cells.width * kBYTES;
    if constexpr (kBYTES >= 4)
    {
        if (!p.columnMajor)
        {
            unsigned char const* from = source + static_cast<int64_t>(tile.first) * rowBytes;
            int32_t const end = tile.count * rowBytes;
#pragma unroll 1
            for (int32_t i = (cells.row * cells.width + cells.column) * kBYTES; i < end; i += kSIDE_THREADS * kBYTES)
            {
                asyncCopy<kBYTES>(target + i, from + i);
            }
            return;
        }
    }
#pragma unroll 1
    for (; cells.row < tile.count; cells.next())
    {
        unsigned char const* from = source + tokenOf(p, tile.first + cells.row) * rowBytes + cells.column * kBYTES;
        unsigned char* to = target + cells.row * rowBytes + cells.column * kBYTES;
        if constexpr (kBYTES >= 4)
        {
            asyncCopy<kBYTES>(to, from);
        }
        else
        {
            *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<uint16_t const*>(from);
        }
    }
}

//! Starts copying a tile of x_dbl as it is.
//! \param source the sample's first row of this group
template <typename T>
__device__ __forceinline__ void stageX(Params const& p, T* target, T const* source, Tile tile, int32_t thread)
{
    CellWalker const cells(thread, p.xVectors);
    auto* to = reinterpret_cast<unsigned char*>(target);
    auto const* from = reinterpret_cast<unsigned char const*>(source);
    switch (p.xVectorBytes)
    {
    case 16: copyRows<16>(p, to, from, tile, cells); break;
    case 8: copyRows<8>(p, to, from, tile, cells); break;
    case 4: copyRows<4>(p, to, from, tile, cells); break;
    default:
        if constexpr (sizeof(T) == 2)
        {
            copyRows<2>(p, to, from, tile, cells);
        }
        break;
    }
}

//! Starts copying a tile of B and C, which are tensors of their own with delta given, into rows B | C.
//! \param b, c the sample's first row of this block's group of channels
//! \param stride elements from one token to the next
template <typename T, int kBYTES>
__device__ __forceinline__ void copyPair(
    Params const& p, T* target, T const* b, T const* c, int64_t stride, Tile tile, int32_t thread)
{
    constexpr int32_t kELEMENTS = kBYTES / static_cast<int32_t>(sizeof(T));
#pragma unroll 1
    for (CellWalker cells(thread, p.xVectors); cells.row < tile.count; cells.next())
    {
        int32_t const column = cells.column * kELEMENTS;
        T const* from = (column < p.states ? b + column : c + column - p.states) + (tile.first + cells.row) * stride;
        T* to = target + cells.row * 2 * p.states + column;
        if constexpr (kBYTES >= 4)
        {
            asyncCopy<kBYTES>(to, from);
        }
        else
        {
            *to = *from;
        }
    }
}

template <typename T>
__device__ __forceinline__ void stagePair(
    Params const& p, T* target, T const* b, T const* c, int64_t stride, Tile tile, int32_t thread)
{
    switch (p.xVectorBytes)
    {
    case 16: copyPair<T, 16>(p, target, b, c, stride, tile, thread); break;
    case 8: copyPair<T, 8>(p, target, b, c, stride, tile, thread); break;
    case 4: copyPair<T, 4>(p, target, b, c, stride, tile, thread); break;
    default:
        if constexpr (sizeof(T) == 2)
        {
            copyPair<T, 2>(p, target, b, c, stride, tile, thread);
        }
        break;
    }
}

//! Starts copying a tile of u, or of delta: `channels` columns from channel `first` on, of which those at or past `limit`
//! are left alone.
//! \param source the sample's first row of this group
template <typename T>
__device__ __forceinline__ void stageU(Params const& p, T* target, T const* source, Tile tile, int32_t first,
    int32_t limit, int32_t channels, int32_t thread)
{
    int32_t const targetRow = channels + 16 / static_cast<int32_t>(sizeof(T)); // SharedLayout::rawURow
    if (p.vectorized)
    {
        constexpr int32_t kWIDTH = 16 / sizeof(T);
        int32_t const perRow = channels / kWIDTH; // a power of two not above kSIDE_THREADS
        int32_t const column = (thread & (perRow - 1)) * kWIDTH;
        if (first + column >= limit)
        {
            return;
        }
        int32_t const rowStep = kSIDE_THREADS / perRow;
        if (!p.columnMajor)
        {
            int32_t row = thread / perRow;
            T const* from = source + static_cast<int64_t>(tile.first + row) * p.channels + first + column;
#pragma unroll 1
            for (; row < tile.count; row += rowStep)
            {
                asyncCopy<16>(target + row * targetRow + column, from);
                from += static_cast<int64_t>(rowStep) * p.channels;
            }
            return;
        }
#pragma unroll 1
        for (int32_t row = thread / perRow; row < tile.count; row += rowStep)
        {
            asyncCopy<16>(
                target + row * targetRow + column, source + tokenOf(p, tile.first + row) * p.channels + first + column);
        }
        return;
    }
    int32_t const column = thread & (channels - 1);
    if (first + column >= limit)
    {
        return;
    }
#pragma unroll 1
    for (int32_t row = thread / channels; row < tile.count; row += kSIDE_THREADS / channels)
    {
        target[row * targetRow + column] = source[tokenOf(p, tile.first + row) * p.channels + first + column];
    }
}

//! x_dbl as float32 rows dt_low | B | C, each part padded with zeros to its stride.
//! \param flat the rows need no padding: convert four at a time, no index arithmetic
template <typename T>
__device__ __forceinline__ void convertRows(
    Params const& p, SharedLayout const& layout, float* rows, T const* raw, int32_t count, int32_t thread, bool flat)
{
    int32_t const width = p.rank + 2 * p.states;
    if (flat)
    {
        int32_t const end = count * width;
#pragma unroll 1
        for (int32_t i = thread * 4; i < end; i += kSIDE_THREADS * 4)
        {
            float values[4];
            loadVector<T, 4>(raw + i, values);
            storeFloats<4>(rows + i, values);
        }
        return;
    }
    int32_t const offsetC = layout.rankPadded + layout.statesPadded;
#pragma unroll 1
    for (CellWalker cells(thread, p.rowFloats); cells.row < count; cells.next())
    {
        int32_t const column = cells.column;
        bool const isDt = column < layout.rankPadded;
        bool const isB = !isDt && column < offsetC;
        int32_t const inPart = column - (isDt ? 0 : isB ? layout.rankPadded : offsetC);
        int32_t const partSize = isDt ? p.rank : p.states;
        int32_t const partStart = isDt ? 0 : isB ? p.rank : p.rank + p.states;
        rows[cells.row * layout.rowFloats + column]
            = inPart < partSize ? toFloat<T>(raw[cells.row * width + partStart + inPart]) : 0.0F;
    }
}

//! dt_weight of the block's channels as [rank / 4][channel][4]: a thread then reads four weights of its channel in one
//! word and a warp's words are consecutive. Zero where there is no channel or no rank.
//! \param source the group's first row
template <typename T>
__device__ __forceinline__ void stageWeights(Params const& p, SharedLayout const& layout, T* target, T const* source,
    int32_t first, int32_t channels, int32_t thread)
{
    int32_t const channel = thread & (channels - 1);
    bool const exists = first + channel < p.channels;
    T const* own = source + static_cast<int64_t>(first + channel) * p.rank;
    int32_t const step = kSIDE_THREADS / channels;
#pragma unroll 2
    for (int32_t quad = thread / channels; quad < layout.rankPadded / 4; quad += step)
    {
        T four[4];
#pragma unroll
        for (int32_t k = 0; k < 4; ++k)
        {
            four[k] = exists && quad * 4 + k < p.rank ? own[quad * 4 + k] : fromFloat<T>(0.0F);
        }
        using Word = std::conditional_t<sizeof(T) == 2, uint2, uint4>;
        Word word;
        memcpy(&word, four, sizeof(word));
        *reinterpret_cast<Word*>(target + (quad * channels + channel) * 4) = word;
    }
}

} // namespace scan
} // namespace vimdeploy
