//! \file reference.h
//! The contract in float64, as its formulas stand: no tiles, no fusion, one loop per symbol. Inputs are what the
//! kernels read (already rounded to T).
#pragma once

#include "kernels/causal_conv1d/launch.h"
#include "kernels/selective_scan/launch.h"

#include <cmath>
#include <vector>

namespace vimdeploy
{
namespace reference
{

using Values = std::vector<double>;

inline double softplus(double v)
{
    return v > 20.0 ? v : std::log1p(std::exp(v));
}

inline double silu(double v)
{
    return v / (1.0 + std::exp(-v));
}

//! Token of the walk's position p: the order stored, or column by column of an H x W grid.
inline int64_t tokenOf(ScanShape const& shape, int32_t group, int64_t position)
{
    if (shape.columnMajor[group] == 0)
    {
        return position;
    }
    int64_t const width = shape.length / shape.height;
    return position % shape.height * width + position / shape.height;
}

struct ScanInputs
{
    Values u, xDbl, A, D, dtWeight, dtBias, z;
    Values delta, B, C; //!< with delta given
};

//! Delta, B and C of one token, channel and group, wherever they come from.
struct TokenInputs
{
    double delta;
    double const* B;
    double const* C;
};

inline TokenInputs tokenInputs(ScanShape const& shape, ScanInputs const& in, int32_t g, int64_t b, int64_t t, int64_t e)
{
    int64_t const L = shape.length, E = shape.channels, N = shape.states, R = shape.rank;
    auto const at = [](Values const& values, int64_t index) { return values[static_cast<std::size_t>(index)]; };
    double v = at(in.dtBias, g * E + e);
    if (shape.givenDelta)
    {
        int64_t const P = shape.channelGroups;
        int64_t const row = (((b * L + t) * P) + e / (E / P)) * N;
        v += at(in.delta, (b * L + t) * E + e);
        return {shape.deltaSoftplus ? softplus(v) : v, in.B.data() + row, in.C.data() + row};
    }
    int64_t const x = (((shape.sharedXDbl ? 0 : g) * shape.batch + b) * L + t) * (R + 2 * N);
    for (int64_t r = 0; r < R; ++r)
    {
        v += at(in.xDbl, x + r) * at(in.dtWeight, (g * E + e) * R + r);
    }
    return {softplus(v), in.xDbl.data() + x + R, in.xDbl.data() + x + R + N};
}

//! \return y (B, L, E)
inline Values scan(ScanShape const& shape, ScanInputs const& in)
{
    int64_t const B = shape.batch, L = shape.length, E = shape.channels, N = shape.states;
    Values y(static_cast<std::size_t>(B * L * E), 0.0);
    auto const at = [](Values const& values, int64_t index) { return values[static_cast<std::size_t>(index)]; };
    std::vector<double> h;
    for (int32_t g = 0; g < shape.groups; ++g)
    {
        for (int64_t b = 0; b < B; ++b)
        {
            int64_t const uRow = ((shape.sharedU ? 0 : g) * B + b) * L;
            for (int64_t e = 0; e < E; ++e)
            {
                h.assign(static_cast<std::size_t>(N), 0.0);
                for (int64_t s = 0; s < L; ++s)
                {
                    int64_t const t = tokenOf(shape, g, shape.directions[g] > 0 ? s : L - 1 - s);
                    TokenInputs const token = tokenInputs(shape, in, g, b, t, e);
                    double const u = at(in.u, (uRow + t) * E + e);
                    double sum = at(in.D, g * E + e) * u;
                    for (int64_t n = 0; n < N; ++n)
                    {
                        double& state = h[static_cast<std::size_t>(n)];
                        state = std::exp(token.delta * at(in.A, (g * E + e) * N + n)) * state
                            + token.delta * u * token.B[n];
                        sum += state * token.C[n];
                    }
                    y[static_cast<std::size_t>((b * L + t) * E + e)] += sum;
                }
            }
        }
    }
    for (std::size_t i = 0; i < y.size(); ++i)
    {
        y[i] *= static_cast<double>(shape.scale) * (shape.gated ? silu(in.z[i]) : 1.0);
    }
    return y;
}

struct ConvInputs
{
    Values x, weight, bias;
};

//! \return u (G, B, L, E)
inline Values conv(ConvShape const& shape, ConvInputs const& in)
{
    int64_t const B = shape.batch, L = shape.length, E = shape.channels, K = shape.width;
    Values u(static_cast<std::size_t>(shape.groups * B * L * E));
    for (int64_t g = 0; g < shape.groups; ++g)
    {
        for (int64_t b = 0; b < B; ++b)
        {
            for (int64_t t = 0; t < L; ++t)
            {
                for (int64_t e = 0; e < E; ++e)
                {
                    double sum = in.bias[static_cast<std::size_t>(g * E + e)];
                    for (int64_t k = 0; k < K; ++k)
                    {
                        int64_t const from = shape.directions[g] > 0 ? t - (K - 1) + k : t + k;
                        if (from >= 0 && from < L)
                        {
                            sum += in.weight[static_cast<std::size_t>((g * E + e) * K + k)]
                                * in.x[static_cast<std::size_t>((b * L + from) * E + e)];
                        }
                    }
                    u[static_cast<std::size_t>(((g * B + b) * L + t) * E + e)] = shape.silu ? silu(sum) : sum;
                }
            }
        }
    }
    return u;
}

} // namespace reference
} // namespace vimdeploy
