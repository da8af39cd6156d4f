//! \file conv.inl
//! CausalConv1d. Packed per group: the K taps, then the bias, each as one row of whole vectors.

namespace
{

int64_t paddedChannels(int64_t channels)
{
    return blocksOf(channels, 1, kLANES) * kLANES;
}

void packConv(ConvParameters const& p, float* packed)
{
    int64_t const row = paddedChannels(p.channels);
    for (int64_t g = 0; g < p.groups; ++g)
    {
        for (int64_t c = 0; c < row; ++c)
        {
            bool const real = c < p.channels;
            for (int64_t k = 0; k < p.width; ++k)
            {
                packed[k * row + c] = real ? p.weight[(g * p.channels + c) * p.width + k] : 0.0F;
            }
            packed[p.width * row + c] = real ? p.bias[g * p.channels + c] : 0.0F;
        }
        packed += (p.width + 1) * row;
    }
}

//! One vector of channels at one token. WIDTH 0: `width` taps.
template <int WIDTH, bool FULL>
VIMDEPLOY_INLINE void convVector(ConvTask const& task, float const* x, float const* taps, float* out, int64_t row,
    int64_t start, int64_t firstTap, int64_t lastTap, int64_t lanes)
{
    Vec sum = load<true>(taps + (WIDTH ? WIDTH : task.width) * row, kLANES);
    if constexpr (WIDTH != 0)
    {
#pragma GCC unroll 8
        for (int k = 0; k < WIDTH; ++k)
        {
            sum += load<true>(taps + k * row, kLANES) * load<FULL>(x + (start + k) * task.channels, lanes);
        }
    }
    else
    {
        for (int64_t k = firstTap; k < lastTap; ++k)
        {
            sum += load<true>(taps + k * row, kLANES) * load<FULL>(x + (start + k) * task.channels, lanes);
        }
    }
    store<FULL>(out, task.silu ? silu(sum) : sum, lanes);
}

template <int WIDTH>
void convRows(ConvTask const& task, int64_t group, int64_t sample, int64_t first, int64_t last)
{
    int64_t const channels = task.channels;
    int64_t const length = task.length;
    int64_t const width = task.width;
    int64_t const row = paddedChannels(channels);
    float const* const taps = task.packed + group * (width + 1) * row;
    float const* const x = task.x + sample * length * channels;
    float* const u = task.u + (group * task.batch + sample) * length * channels;
    for (int64_t t = first; t < last; ++t)
    {
        // Forward: the last tap meets token t itself. Backward: the first one does.
        int64_t const start = task.backward[group] ? t : t - (width - 1);
        int64_t const firstTap = start < 0 ? -start : 0;
        int64_t const lastTap = start + width > length ? length - start : width;
        bool const inside = firstTap == 0 && lastTap == width;
        float* const out = u + t * channels;
        int64_t c = 0;
        for (; c + kLANES <= channels; c += kLANES)
        {
            if (inside)
            {
                convVector<WIDTH, true>(task, x + c, taps + c, out + c, row, start, firstTap, lastTap, kLANES);
            }
            else
            {
                convVector<0, true>(task, x + c, taps + c, out + c, row, start, firstTap, lastTap, kLANES);
            }
        }
        if (c < channels)
        {
            convVector<0, false>(task, x + c, taps + c, out + c, row, start, firstTap, lastTap, channels - c);
        }
    }
}

void conv(ConvTask const& task, int64_t group, int64_t sample, int64_t first, int64_t last)
{
    FlushSubnormals const flush;
    switch (task.width)
    {
    case 2: return convRows<2>(task, group, sample, first, last);
    case 3: return convRows<3>(task, group, sample, first, last);
    case 4: return convRows<4>(task, group, sample, first, last);
    default: return convRows<0>(task, group, sample, first, last);
    }
}

} // namespace
