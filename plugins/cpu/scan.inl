//! \file scan.inl
//! The selective scan, tile by tile: a few tokens in walking order, for one block of channels after the other.
//!
//! Packed per block: N vectors A log2(e), then for ScanTask R vectors of dt_weight and the bias, for DeltaTask the
//! bias, then D. The states of a block stay in registers while a tile passes, VIMDEPLOY_CHUNK of them at a time.

namespace
{

constexpr int kTILE = 16;
constexpr int kCHUNK = VIMDEPLOY_CHUNK;

//! Where the next tokens lie, in walking order, and those of the tile behind them, to be fetched meanwhile.
struct Tile
{
    int count;
    int64_t token[kTILE];
    int64_t ahead[kTILE];
};

int64_t tokenAt(Walk const& walk, int64_t step)
{
    int64_t const t = walk.backward ? walk.length - 1 - step : step;
    if (!walk.columnMajor)
    {
        return t;
    }
    int64_t const width = walk.length / walk.height;
    return (t % walk.height) * width + t / walk.height;
}

void fillTile(Tile& tile, Walk const& walk, int64_t start)
{
    int64_t const left = walk.length - start;
    tile.count = static_cast<int>(left < kTILE ? left : kTILE);
    for (int i = 0; i < tile.count; ++i)
    {
        int64_t const later = start + i + kTILE;
        tile.token[i] = tokenAt(walk, start + i);
        tile.ahead[i] = tokenAt(walk, later < walk.length ? later : walk.length - 1);
    }
}

//! What a block needs besides its tokens.
struct Block
{
    Vec const* rate; //!< (N) A log2(e)
    Vec* state;      //!< (N)
    Vec bias;
    Vec skip;
    int64_t channel; //!< its first
    int64_t lanes;   //!< its channels
};

//! The sample's rows of u, z and y, and what happens to y.
struct Rows
{
    int64_t channels;
    float const* u;
    float const* z;
    float* y;
    float scale;
    bool first; //!< y is not there yet
    bool last;  //!< y is scaled and gated
};

//! Per token of a tile: pointers to the N values of B and of C.
struct Projections
{
    float const* b[kTILE];
    float const* c[kTILE];
};

//! Walks STATES of the states through a tile and adds what they give to y.
template <size_t STATES>
VIMDEPLOY_INLINE void walkStates(
    Block const& block, int64_t firstState, Projections const& p, Vec const* delta, Vec const* drive, Vec* y, int count)
{
    Vec const* const rate = block.rate + firstState;
    Vec* const kept = block.state + firstState;
    Vec state[STATES];
    for (size_t i = 0; i < STATES; ++i)
    {
        state[i] = kept[i];
    }
    for (int t = 0; t < count; ++t)
    {
        float const* const b = p.b[t] + firstState;
        float const* const c = p.c[t] + firstState;
        Vec const step = delta[t];
        Vec const input = drive[t];
        Vec sum = y[t];
#pragma GCC unroll 16
        for (size_t i = 0; i < STATES; ++i)
        {
            state[i] = exp2OfProduct(step, rate[i]) * state[i] + input * b[i];
            sum += state[i] * c[i];
        }
        y[t] = sum;
    }
    for (size_t i = 0; i < STATES; ++i)
    {
        kept[i] = state[i];
    }
}

VIMDEPLOY_INLINE void walkAllStates(
    Block const& block, int64_t states, Projections const& p, Vec const* delta, Vec const* drive, Vec* y, int count)
{
    int64_t n = 0;
    for (; n + kCHUNK <= states; n += kCHUNK)
    {
        walkStates<kCHUNK>(block, n, p, delta, drive, y, count);
    }
    if constexpr (kCHUNK > 8)
    {
        for (; n + 8 <= states; n += 8)
        {
            walkStates<8>(block, n, p, delta, drive, y, count);
        }
    }
    for (; n + 4 <= states; n += 4)
    {
        walkStates<4>(block, n, p, delta, drive, y, count);
    }
    for (; n < states; ++n)
    {
        walkStates<1>(block, n, p, delta, drive, y, count);
    }
}

//! One tile of one block, once its delta (before the softplus) is known.
template <bool FULL, bool SOFTPLUS>
VIMDEPLOY_INLINE void advance(
    Block const& block, Rows const& rows, Tile const& tile, Projections const& p, int64_t states, Vec* delta)
{
    Vec drive[kTILE];
    Vec y[kTILE];
    for (int t = 0; t < tile.count; ++t)
    {
        int64_t const at = tile.token[t] * rows.channels + block.channel;
        int64_t const ahead = tile.ahead[t] * rows.channels + block.channel;
        __builtin_prefetch(rows.u + ahead);
        if (!rows.first)
        {
            __builtin_prefetch(rows.y + ahead, 1);
        }
        if (rows.last && rows.z != nullptr)
        {
            __builtin_prefetch(rows.z + ahead);
        }
        Vec const u = load<FULL>(rows.u + at, block.lanes);
        delta[t] = SOFTPLUS ? softplus(delta[t]) : delta[t];
        drive[t] = delta[t] * u;
        y[t] = block.skip * u;
        if (!rows.first)
        {
            y[t] += load<FULL>(rows.y + at, block.lanes);
        }
    }
    walkAllStates(block, states, p, delta, drive, y, tile.count);
    for (int t = 0; t < tile.count; ++t)
    {
        int64_t const at = tile.token[t] * rows.channels + block.channel;
        Vec value = y[t];
        if (rows.last)
        {
            value *= rows.scale;
            if (rows.z != nullptr)
            {
                value *= silu(load<FULL>(rows.z + at, block.lanes));
            }
        }
        store<FULL>(rows.y + at, value, block.lanes);
    }
}

//! delta = dt_low . dt_weight + bias for a tile; dt_low stands at the start of each row of x_dbl.
VIMDEPLOY_INLINE void projectDelta(
    Vec* delta, float const* const* rows, Vec const* weight, Vec bias, int64_t rank, int count)
{
    int t = 0;
    for (; t + 4 <= count; t += 4) // four tokens share each weight
    {
        Vec sum[4] = {bias, bias, bias, bias};
        for (int64_t r = 0; r < rank; ++r)
        {
            Vec const w = weight[r];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i)
            {
                sum[i] += w * rows[t + i][r];
            }
        }
        for (int i = 0; i < 4; ++i)
        {
            delta[t + i] = sum[i];
        }
    }
    for (; t < count; ++t)
    {
        Vec sum = bias;
        for (int64_t r = 0; r < rank; ++r)
        {
            sum += weight[r] * rows[t][r];
        }
        delta[t] = sum;
    }
}

//! Puts one parameter of a block's channels into its vector; channels that are not there get zero.
void packLanes(float* vector, float const* values, int64_t stride, int64_t lanes, float factor)
{
    for (int64_t lane = 0; lane < kLANES; ++lane)
    {
        float const value = lane < lanes ? values[lane * stride] * factor : 0.0F;
        // The payload of a NaN would end up in the exponent of a decay.
        vector[lane] = value == value ? value : __builtin_nanf("");
    }
}

void packScan(ScanParameters const& p, float* packed)
{
    for (int64_t g = 0; g < p.groups; ++g)
    {
        for (int64_t c = 0; c < p.channels; c += kLANES)
        {
            int64_t const lanes = p.channels - c < kLANES ? p.channels - c : kLANES;
            int64_t const channel = g * p.channels + c;
            for (int64_t n = 0; n < p.states; ++n, packed += kLANES)
            {
                packLanes(packed, p.a + channel * p.states + n, p.states, lanes, kLOG2_E);
            }
            for (int64_t r = 0; r < p.rank; ++r, packed += kLANES)
            {
                packLanes(packed, p.dtWeight + channel * p.rank + r, p.rank, lanes, 1.0F);
            }
            packLanes(packed, p.dtBias + channel, 1, lanes, 1.0F);
            packLanes(packed + kLANES, p.d + channel, 1, lanes, 1.0F);
            packed += 2 * kLANES;
        }
    }
}

void packDelta(DeltaParameters const& p, float* packed)
{
    int64_t const size = p.channels / p.groups;
    for (int64_t g = 0; g < p.groups; ++g)
    {
        for (int64_t c = 0; c < size; c += kLANES)
        {
            int64_t const lanes = size - c < kLANES ? size - c : kLANES;
            int64_t const channel = g * size + c;
            for (int64_t n = 0; n < p.states; ++n, packed += kLANES)
            {
                packLanes(packed, p.a + channel * p.states + n, p.states, lanes, kLOG2_E);
            }
            packLanes(packed, p.deltaBias + channel, 1, lanes, 1.0F);
            packLanes(packed + kLANES, p.d + channel, 1, lanes, 1.0F);
            packed += 2 * kLANES;
        }
    }
}

void clearStates(Vec* state, int64_t count)
{
    for (int64_t i = 0; i < count; ++i)
    {
        state[i] = Vec{};
    }
}

void scan(ScanTask const& task, int64_t sample, int64_t first, int64_t last)
{
    FlushSubnormals const flush;
    int64_t const states = task.states;
    int64_t const rank = task.rank;
    int64_t const length = task.groups > 0 ? task.walks[0].length : 0;
    int64_t const blocks = blocksOf(task.channels, 1, kLANES);
    int64_t const perBlock = states + rank + 2;
    int64_t const sampleSize = length * task.channels;
    int64_t const xWidth = rank + 2 * states;
    Vec* const state = reinterpret_cast<Vec*>(task.state) + (sample * blocks + first) * states;
    Rows rows = {};
    rows.channels = task.channels;
    rows.scale = task.scale;
    rows.y = task.y + sample * sampleSize;
    rows.z = task.z == nullptr ? nullptr : task.z + sample * sampleSize;
    for (int64_t g = 0; g < task.groups; ++g)
    {
        rows.u = task.u + g * task.uGroupStride + sample * sampleSize;
        rows.first = g == 0;
        rows.last = g == task.groups - 1;
        float const* const x = task.xDbl + g * task.xGroupStride + sample * length * xWidth;
        Vec const* const packed = reinterpret_cast<Vec const*>(task.packed) + (g * blocks + first) * perBlock;
        clearStates(state, (last - first) * states);
        for (int64_t start = 0; start < length; start += kTILE)
        {
            Tile tile;
            fillTile(tile, task.walks[g], start);
            float const* xRows[kTILE];
            Projections projections;
            for (int t = 0; t < tile.count; ++t)
            {
                xRows[t] = x + tile.token[t] * xWidth;
                projections.b[t] = xRows[t] + rank;
                projections.c[t] = xRows[t] + rank + states;
            }
            for (int64_t i = first; i < last; ++i)
            {
                Vec const* const own = packed + (i - first) * perBlock;
                int64_t const channel = i * kLANES;
                int64_t const left = task.channels - channel;
                Block const block = {own, state + (i - first) * states, own[states + rank], own[states + rank + 1],
                    channel, left < kLANES ? left : kLANES};
                Vec delta[kTILE];
                projectDelta(delta, xRows, own + states, block.bias, rank, tile.count);
                if (block.lanes == kLANES)
                {
                    advance<true, true>(block, rows, tile, projections, states, delta);
                }
                else
                {
                    advance<false, true>(block, rows, tile, projections, states, delta);
                }
            }
        }
    }
}

template <bool FULL>
VIMDEPLOY_INLINE void loadDelta(Vec* delta, float const* values, Block const& block, Tile const& tile, int64_t channels)
{
    for (int t = 0; t < tile.count; ++t)
    {
        __builtin_prefetch(values + tile.ahead[t] * channels + block.channel);
        delta[t] = block.bias + load<FULL>(values + tile.token[t] * channels + block.channel, block.lanes);
    }
}

template <bool SOFTPLUS>
void scanDeltaBlocks(DeltaTask const& task, int64_t sample, int64_t first, int64_t last)
{
    FlushSubnormals const flush;
    int64_t const states = task.states;
    int64_t const channels = task.channels;
    int64_t const length = task.walk.length;
    int64_t const size = channels / task.groups;
    int64_t const blocksPerGroup = blocksOf(size, 1, kLANES);
    int64_t const perBlock = states + 2;
    int64_t const rowStates = task.groups * states;
    Vec* const state = reinterpret_cast<Vec*>(task.state) + (sample * blocksPerGroup * task.groups + first) * states;
    Vec const* const packed = reinterpret_cast<Vec const*>(task.packed);
    Rows rows = {};
    rows.channels = channels;
    rows.scale = 1.0F;
    rows.first = rows.last = true;
    rows.u = task.u + sample * length * channels;
    rows.y = task.y + sample * length * channels;
    rows.z = task.z == nullptr ? nullptr : task.z + sample * length * channels;
    float const* const given = task.delta + sample * length * channels;
    clearStates(state, (last - first) * states);
    for (int64_t start = 0; start < length; start += kTILE)
    {
        Tile tile;
        fillTile(tile, task.walk, start);
        for (int64_t i = first; i < last; ++i)
        {
            int64_t const group = i / blocksPerGroup;
            int64_t const within = (i % blocksPerGroup) * kLANES;
            Vec const* const own = packed + i * perBlock;
            Block const block = {own, state + (i - first) * states, own[states], own[states + 1], group * size + within,
                size - within < kLANES ? size - within : kLANES};
            Projections projections;
            for (int t = 0; t < tile.count; ++t)
            {
                int64_t const at = (sample * length + tile.token[t]) * rowStates + group * states;
                projections.b[t] = task.b + at;
                projections.c[t] = task.c + at;
            }
            Vec delta[kTILE];
            if (block.lanes == kLANES)
            {
                loadDelta<true>(delta, given, block, tile, channels);
                advance<true, SOFTPLUS>(block, rows, tile, projections, states, delta);
            }
            else
            {
                loadDelta<false>(delta, given, block, tile, channels);
                advance<false, SOFTPLUS>(block, rows, tile, projections, states, delta);
            }
        }
    }
}

void scanDelta(DeltaTask const& task, int64_t sample, int64_t first, int64_t last)
{
    if (task.softplus)
    {
        scanDeltaBlocks<true>(task, sample, first, last);
    }
    else
    {
        scanDeltaBlocks<false>(task, sample, first, last);
    }
}

} // namespace
