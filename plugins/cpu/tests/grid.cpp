//! \file grid.cpp
//! The CPU kernels against float64, over a grid of shapes, types, walks, instruction sets and thread counts, and against
//! callers that pass nonsense. Run under sanitizers, and under qemu-user for ARM (tests/plugins/test_cpu_grid.py).
//!
//!     grid [--quick] [--descriptors N]      prints one line per failure, then "N cases, M failed"
#include "cpu/c_api.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace
{

using Floats = std::vector<float>;
std::mt19937 gRandom{7};
int gCases = 0;
int gFailed = 0;

Floats draw(size_t count, float scale = 1.0F, float offset = 0.0F)
{
    std::normal_distribution<float> normal;
    Floats values(count);
    for (float& value : values)
    {
        value = offset + scale * normal(gRandom);
    }
    return values;
}

void fail(std::string const& what)
{
    ++gFailed;
    std::printf("FAIL %s\n", what.c_str());
}

//! A tensor of a call: float32 values as the caller's type holds them, and that type's bytes.
struct Held
{
    std::vector<int64_t> dims;
    int64_t element;
    Floats values;
    std::vector<uint16_t> halves;

    [[nodiscard]] vimdeploy_ops_tensor view() const
    {
        void const* const data = element == 0 ? static_cast<void const*>(values.data()) : halves.data();
        return {data, dims.data(), static_cast<int64_t>(dims.size()), element};
    }
};

float fromBits(uint32_t bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

//! float16 by the definition of the format: independent of the conversion under test.
double halfValue(uint16_t bits)
{
    int const exponent = bits >> 10 & 31;
    double const fraction = bits & 1023;
    double const magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024.0 + fraction, exponent - 25);
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

uint16_t nearestHalf(float value)
{
    uint16_t low = 0;
    uint16_t high = 0x7BFF;
    double const magnitude = std::fabs(static_cast<double>(value));
    while (low < high) // the largest half that is not above
    {
        uint16_t const middle = static_cast<uint16_t>((low + high + 1) / 2);
        halfValue(middle) <= magnitude ? low = middle : high = static_cast<uint16_t>(middle - 1);
    }
    uint16_t const next = static_cast<uint16_t>(low + 1);
    bool const up = low < 0x7BFF && halfValue(next) - magnitude < magnitude - halfValue(low);
    return static_cast<uint16_t>((up ? next : low) | (std::signbit(value) ? 0x8000U : 0U));
}

Held hold(std::vector<int64_t> dims, Floats values, int64_t element)
{
    Held held{std::move(dims), element, std::move(values), {}};
    for (float& value : held.values)
    {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        if (element == 1)
        {
            held.halves.push_back(nearestHalf(value));
            value = static_cast<float>(halfValue(held.halves.back()));
        }
        else if (element == 2)
        {
            held.halves.push_back(static_cast<uint16_t>(bits >> 16));
            value = fromBits(bits & 0xFFFF0000U);
        }
    }
    return held;
}

struct Attributes
{
    std::vector<int64_t> directions;
    std::vector<int64_t> columnMajor;
    int64_t height = 1;
    float scale = 1.0F;
    bool silu = true;
    bool softplus = true;
    bool reverse = false;
};

//! Runs a call. \return its output as doubles; empty and counted as failed where the library refuses.
std::vector<double> run(std::string const& op, char const* isa, std::vector<Held> const& inputs, Attributes const& a,
    size_t outputs, int64_t element, int64_t threads, std::string const& what)
{
    std::vector<vimdeploy_ops_tensor> views;
    for (Held const& input : inputs)
    {
        views.push_back(input.view());
    }
    Floats wide(element == 0 ? outputs : 0);
    std::vector<uint16_t> narrow(element == 0 ? 0 : outputs);
    vimdeploy_ops_call call{};
    call.struct_size = sizeof call;
    call.op = op.c_str();
    call.isa = isa;
    call.threads = threads;
    call.inputs = views.data();
    call.input_count = views.size();
    call.output = element == 0 ? static_cast<void*>(wide.data()) : narrow.data();
    call.output_size = outputs * (element == 0 ? 4U : 2U);
    call.directions = a.directions.data();
    call.column_major = a.columnMajor.data();
    call.groups = a.directions.size();
    call.height = a.height;
    call.scale = a.scale;
    call.silu = a.silu ? 1 : 0;
    call.delta_softplus = a.softplus ? 1 : 0;
    call.reverse = a.reverse ? 1 : 0;
    char text[400];
    if (vimdeploy_ops_run(&call, text, sizeof text) != 0)
    {
        fail(what + ": " + text);
        return {};
    }
    std::vector<double> result;
    for (size_t i = 0; i < outputs; ++i)
    {
        result.push_back(element == 0 ? static_cast<double>(wide[i])
                : element == 1        ? halfValue(narrow[i])
                                      : static_cast<double>(fromBits(static_cast<uint32_t>(narrow[i]) << 16)));
    }
    return result;
}

void compare(
    std::vector<double> const& found, std::vector<double> const& expected, int64_t element, std::string const& what)
{
    static constexpr double kBOUNDS[] = {2e-6, 6e-4, 4.5e-3};
    double largest = 0.0;
    double error = 0.0;
    for (size_t i = 0; i < found.size(); ++i)
    {
        largest = std::fmax(largest, std::fabs(expected[i]));
        double const difference = std::fabs(found[i] - expected[i]);
        error = difference >= error || std::isnan(difference) ? difference : error;
    }
    if (!found.empty() && !(error <= kBOUNDS[element] * largest))
    {
        fail(what + ": error " + std::to_string(error / largest) + " of the maximum");
    }
}

double softplus(double x)
{
    return x > 30.0 ? x : std::log1p(std::exp(x));
}

double silu(double x)
{
    return x / (1.0 + std::exp(-x));
}

struct Shape
{
    int64_t batch, height, width, channels, states, rank, groups;

    [[nodiscard]] int64_t length() const
    {
        return height * width;
    }
};

size_t product(std::initializer_list<int64_t> sizes)
{
    size_t total = 1;
    for (int64_t size : sizes)
    {
        total *= static_cast<size_t>(size);
    }
    return total;
}

int64_t tokenAt(int64_t step, Shape const& s, int64_t direction, int64_t columnMajor)
{
    int64_t const t = direction == 1 ? step : s.length() - 1 - step;
    return columnMajor != 0 ? t % s.height * s.width + t / s.height : t;
}

char const* const kISAS[] = {"avx512", "avx2", "neon", "base"};

//! Runs one case on every instruction set of this machine, once and with three threads, which must not change a bit.
template <typename EXPECTED>
void everywhere(std::string const& op, std::vector<Held> const& inputs, Attributes const& a, size_t outputs,
    int64_t element, std::string const& what, EXPECTED expected)
{
    std::vector<double> const reference = expected();
    for (char const* isa : kISAS)
    {
        if (vimdeploy_ops_has_isa(isa) == 0)
        {
            continue;
        }
        ++gCases;
        std::string const name = op + " " + isa + " type " + std::to_string(element) + " " + what;
        std::vector<double> const found = run(op, isa, inputs, a, outputs, element, 1, name);
        compare(found, reference, element, name);
        if (found != run(op, isa, inputs, a, outputs, element, 3, name))
        {
            fail(name + ": three threads compute something else than one");
        }
    }
}

void scanCase(Shape const& s, int64_t element, bool sharedU, bool sharedX, bool gated, bool grid)
{
    int64_t const L = s.length();
    int64_t const x = s.rank + 2 * s.states;
    Attributes a;
    for (int64_t g = 0; g < s.groups; ++g)
    {
        a.directions.push_back(g % 2 == 0 ? 1 : -1);
        a.columnMajor.push_back(grid && g / 2 % 2 == 0 ? 1 : 0);
    }
    a.height = grid ? s.height : 1;
    a.scale = 0.5F;
    int64_t const gu = sharedU ? 1 : s.groups;
    int64_t const gx = sharedX ? 1 : s.groups;
    Floats rates = draw(product({s.groups, s.channels, s.states}), 0.5F);
    for (float& rate : rates)
    {
        rate = -std::exp(rate);
    }
    std::vector<Held> in;
    in.push_back(hold({gu, s.batch, L, s.channels}, draw(product({gu, s.batch, L, s.channels})), element));
    in.push_back(hold({gx, s.batch, L, x}, draw(product({gx, s.batch, L, x})), element));
    in.push_back(hold({s.groups, s.channels, s.states}, rates, 0));
    in.push_back(hold({s.groups, s.channels}, draw(product({s.groups, s.channels})), 0));
    in.push_back(hold({s.groups, s.channels, s.rank}, draw(product({s.groups, s.channels, s.rank}), 0.3F), element));
    in.push_back(hold({s.groups, s.channels}, draw(product({s.groups, s.channels}), 1.0F, -2.0F), 0));
    if (gated)
    {
        in.push_back(hold({s.batch, L, s.channels}, draw(product({s.batch, L, s.channels})), element));
    }
    std::string const what = "B" + std::to_string(s.batch) + " L" + std::to_string(s.height) + "x"
        + std::to_string(s.width) + " E" + std::to_string(s.channels) + " N" + std::to_string(s.states) + " R"
        + std::to_string(s.rank) + " G" + std::to_string(s.groups) + (sharedU ? " shared u" : "")
        + (sharedX ? " shared x" : "") + (grid ? " column-major" : "");
    auto const at = [](Held const& h, int64_t i) { return static_cast<double>(h.values[static_cast<size_t>(i)]); };
    auto const expected = [&]
    {
        std::vector<double> y(product({s.batch, L, s.channels}), 0.0);
        for (int64_t g = 0; g < s.groups; ++g)
        {
            for (int64_t b = 0; b < s.batch; ++b)
            {
                for (int64_t e = 0; e < s.channels; ++e)
                {
                    std::vector<double> h(static_cast<size_t>(s.states), 0.0);
                    int64_t const ge = g * s.channels + e;
                    for (int64_t step = 0; step < L; ++step)
                    {
                        int64_t const t = tokenAt(
                            step, s, a.directions[static_cast<size_t>(g)], a.columnMajor[static_cast<size_t>(g)]);
                        int64_t const row = (((sharedX ? 0 : g) * s.batch + b) * L + t) * x;
                        double delta = at(in[5], ge);
                        for (int64_t r = 0; r < s.rank; ++r)
                        {
                            delta += at(in[1], row + r) * at(in[4], ge * s.rank + r);
                        }
                        delta = softplus(delta);
                        double const u = at(in[0], (((sharedU ? 0 : g) * s.batch + b) * L + t) * s.channels + e);
                        double sum = at(in[3], ge) * u;
                        for (int64_t n = 0; n < s.states; ++n)
                        {
                            double& state = h[static_cast<size_t>(n)];
                            state = std::exp(delta * at(in[2], ge * s.states + n)) * state
                                + delta * u * at(in[1], row + s.rank + n);
                            sum += state * at(in[1], row + s.rank + s.states + n);
                        }
                        int64_t const place = (b * L + t) * s.channels + e;
                        double const gate = gated && g == s.groups - 1 ? 1.0 : 0.0;
                        y[static_cast<size_t>(place)] += sum;
                        if (g == s.groups - 1)
                        {
                            y[static_cast<size_t>(place)] *= 0.5 * (gate > 0.0 ? silu(at(in[6], place)) : 1.0);
                        }
                    }
                }
            }
        }
        return y;
    };
    everywhere(gated ? "SelectiveScan" : "SelectiveScanNoGate", in, a, product({s.batch, L, s.channels}),
        gated ? element : 0, what, expected);
}

void deltaCase(Shape const& s, int64_t element, bool gated, bool withSoftplus, bool reverse)
{
    int64_t const L = s.length();
    Attributes a;
    a.softplus = withSoftplus;
    a.reverse = reverse;
    Floats rates = draw(product({s.channels, s.states}), 0.5F);
    for (float& rate : rates)
    {
        rate = -std::exp(rate);
    }
    Floats steps = draw(product({s.batch, L, s.channels}), 0.5F, withSoftplus ? -1.0F : 1.5F);
    if (!withSoftplus)
    {
        for (float& step : steps)
        {
            step = std::fabs(step);
        }
    }
    std::vector<Held> in;
    in.push_back(hold({s.batch, L, s.channels}, draw(product({s.batch, L, s.channels})), element));
    in.push_back(hold({s.batch, L, s.channels}, steps, element));
    in.push_back(hold({s.channels, s.states}, rates, 0));
    in.push_back(hold({s.batch, L, s.groups, s.states}, draw(product({s.batch, L, s.groups, s.states})), element));
    in.push_back(hold({s.batch, L, s.groups, s.states}, draw(product({s.batch, L, s.groups, s.states})), element));
    in.push_back(hold({s.channels}, draw(product({s.channels})), 0));
    in.push_back(hold({s.channels}, draw(product({s.channels}), 0.1F, 0.1F), 0));
    if (gated)
    {
        in.push_back(hold({s.batch, L, s.channels}, draw(product({s.batch, L, s.channels})), element));
    }
    auto const at = [](Held const& h, int64_t i) { return static_cast<double>(h.values[static_cast<size_t>(i)]); };
    auto const expected = [&]
    {
        std::vector<double> y(product({s.batch, L, s.channels}), 0.0);
        for (int64_t b = 0; b < s.batch; ++b)
        {
            for (int64_t e = 0; e < s.channels; ++e)
            {
                int64_t const g = e / (s.channels / s.groups);
                std::vector<double> h(static_cast<size_t>(s.states), 0.0);
                for (int64_t step = 0; step < L; ++step)
                {
                    int64_t const t = reverse ? L - 1 - step : step;
                    int64_t const place = (b * L + t) * s.channels + e;
                    int64_t const row = ((b * L + t) * s.groups + g) * s.states;
                    double delta = at(in[1], place) + at(in[6], e);
                    delta = withSoftplus ? softplus(delta) : delta;
                    double const u = at(in[0], place);
                    double sum = at(in[5], e) * u;
                    for (int64_t n = 0; n < s.states; ++n)
                    {
                        double& state = h[static_cast<size_t>(n)];
                        state = std::exp(delta * at(in[2], e * s.states + n)) * state + delta * u * at(in[3], row + n);
                        sum += state * at(in[4], row + n);
                    }
                    y[static_cast<size_t>(place)] = sum * (gated ? silu(at(in[7], place)) : 1.0);
                }
            }
        }
        return y;
    };
    std::string const what = "L" + std::to_string(L) + " E" + std::to_string(s.channels) + " N"
        + std::to_string(s.states) + " G" + std::to_string(s.groups) + (reverse ? " reverse" : "");
    everywhere(gated ? "SelectiveScanDelta" : "SelectiveScanDeltaNoGate", in, a, product({s.batch, L, s.channels}),
        gated ? element : 0, what, expected);
}

void convCase(Shape const& s, int64_t width, int64_t element, bool withSilu)
{
    int64_t const L = s.length();
    Attributes a;
    a.silu = withSilu;
    for (int64_t g = 0; g < s.groups; ++g)
    {
        a.directions.push_back(g % 2 == 0 ? 1 : -1);
    }
    std::vector<Held> in;
    in.push_back(hold({s.batch, L, s.channels}, draw(product({s.batch, L, s.channels})), element));
    in.push_back(hold({s.groups, s.channels, width}, draw(product({s.groups, s.channels, width})), element));
    in.push_back(hold({s.groups, s.channels}, draw(product({s.groups, s.channels})), element));
    auto const at = [](Held const& h, int64_t i) { return static_cast<double>(h.values[static_cast<size_t>(i)]); };
    auto const expected = [&]
    {
        std::vector<double> u;
        for (int64_t g = 0; g < s.groups; ++g)
        {
            for (int64_t i = 0; i < s.batch * L * s.channels; ++i)
            {
                int64_t const e = i % s.channels;
                int64_t const t = i / s.channels % L;
                int64_t const b = i / s.channels / L;
                double sum = at(in[2], g * s.channels + e);
                for (int64_t k = 0; k < width; ++k)
                {
                    int64_t const source = a.directions[static_cast<size_t>(g)] == 1 ? t - (width - 1) + k : t + k;
                    if (source >= 0 && source < L)
                    {
                        sum += at(in[0], (b * L + source) * s.channels + e)
                            * at(in[1], (g * s.channels + e) * width + k);
                    }
                }
                u.push_back(withSilu ? silu(sum) : sum);
            }
        }
        return u;
    };
    everywhere("CausalConv1d", in, a, product({s.groups, s.batch, L, s.channels}), element,
        "L" + std::to_string(L) + " E" + std::to_string(s.channels) + " K" + std::to_string(width), expected);
}

void grid(bool quick)
{
    int64_t const types = quick ? 1 : 3;
    for (int64_t element = 0; element < types; ++element)
    {
        for (int64_t channels : {1, 15, 16, 33, 130})
        {
            for (int64_t states : {1, 7, 16, 20, 64})
            {
                for (int64_t groups : {1, 2, 4, 5})
                {
                    if (quick && (channels + states + groups) % 3 != 0)
                    {
                        continue;
                    }
                    bool const odd = (channels + states) % 2 != 0;
                    int64_t const height = odd ? 3 : 5;
                    Shape const s{1 + groups % 2, height, odd ? 11 : 7, channels, states, 1 + states % 5, groups};
                    scanCase(s, element, odd, !odd, groups != 2, odd);
                    if (channels % groups == 0)
                    {
                        deltaCase(s, element, odd, groups != 4, !odd);
                    }
                }
            }
        }
        for (int64_t width : {1, 2, 3, 4, 7})
        {
            for (int64_t channels : {1, 16, 47})
            {
                convCase({2, 1, 5, channels, 0, 0, 2}, width, element, width != 3);
                convCase({1, 1, 131, channels, 0, 0, 1}, width, element, true);
            }
        }
    }
}

//! Calls with shapes, ranks, types, pointers and attributes that mean nothing: every one has to be answered, and none
//! may touch memory that was not given. Where one happens to fit, it runs.
void nonsense(int count)
{
    static char const* const kOPS[] = {"CausalConv1d", "SelectiveScan", "SelectiveScanNoGate", "SelectiveScanDelta",
        "SelectiveScanDeltaNoGate", "Attention"};
    static int64_t const kSIZES[] = {-1, 0, 1, 2, 3, 4, 6, INT64_MAX, INT64_MAX / 8, 1LL << 40, INT64_MIN};
    // What fits, of which some calls change one size: the checks behind the first are met too.
    static std::vector<std::vector<int64_t>> const kCONV{{1, 2, 3}, {1, 3, 2}, {1, 3}};
    static std::vector<std::vector<int64_t>> const kSCAN{
        {1, 1, 2, 3}, {1, 1, 2, 5}, {1, 3, 2}, {1, 3}, {1, 3, 1}, {1, 3}, {1, 2, 3}};
    static std::vector<std::vector<int64_t>> const kDELTA{
        {1, 2, 3}, {1, 2, 3}, {3, 2}, {1, 2, 1, 2}, {1, 2, 1, 2}, {3}, {3}, {1, 2, 3}};
    auto const pick = [](size_t n) { return static_cast<size_t>(gRandom() % n); };
    int accepted = 0;
    for (int i = 0; i < count; ++i)
    {
        size_t const op = pick(std::size(kOPS));
        auto const& fitting = op == 0 ? kCONV : (op < 3 ? kSCAN : kDELTA);
        bool const fits = pick(2) != 0;
        size_t const inputs = fits ? fitting.size() - (op == 2 || op == 4 ? 1 : 0) : pick(10);
        size_t const changed = pick(12);
        bool const likely = pick(4) != 0; // mostly small sizes, so that checks behind the first are met
        std::vector<std::vector<int64_t>> dims(10);
        std::vector<vimdeploy_ops_tensor> tensors(10);
        std::vector<Floats> memory(10);
        for (size_t t = 0; t < 10; ++t)
        {
            int64_t elements = 1;
            bool const taken = fits && t < fitting.size();
            size_t const rank = taken ? fitting[t].size() : pick(6);
            for (size_t d = 0; d < rank; ++d)
            {
                dims[t].push_back(likely ? static_cast<int64_t>(1 + pick(2)) : kSIZES[pick(std::size(kSIZES))]);
                if (taken && !(t == changed && pick(rank) == 0))
                {
                    dims[t].back() = fitting[t][d];
                }
                elements = dims[t].back() < 0 || dims[t].back() > 8 ? 0 : elements * dims[t].back();
            }
            memory[t].assign(static_cast<size_t>(elements), 0.5F);
            tensors[t] = {elements == 0 && pick(2) != 0 ? nullptr : memory[t].data(), dims[t].data(),
                static_cast<int64_t>(rank), likely || fits ? 0 : static_cast<int64_t>(pick(5)) - 1};
        }
        std::vector<int64_t> per{1, 0, -1, 2};
        Floats output(64);
        vimdeploy_ops_call call{};
        call.struct_size = pick(20) != 0 ? sizeof call : pick(100);
        call.op = pick(30) != 0 ? kOPS[op] : nullptr;
        call.isa = pick(10) != 0 ? "base" : (pick(2) != 0 ? nullptr : "mmx");
        call.threads = static_cast<int64_t>(pick(4)) - 1;
        call.inputs = pick(30) != 0 ? tensors.data() : nullptr;
        call.input_count = inputs;
        call.output = pick(10) != 0 ? output.data() : nullptr;
        call.output_size = fits ? 24 : 4 * pick(64);
        call.directions = pick(10) != 0 ? per.data() : nullptr;
        call.column_major = pick(10) != 0 ? per.data() + pick(2) : nullptr;
        call.groups = fits && pick(4) != 0 ? 1 : pick(3);
        call.height = kSIZES[pick(std::size(kSIZES))];
        call.scale = 1.0F;
        call.delta_softplus = static_cast<int32_t>(pick(3));
        char text[400];
        accepted += vimdeploy_ops_run(&call, text, pick(sizeof text)) == 0 ? 1 : 0;
        ++gCases;
    }
    std::printf("%d of %d nonsensical calls happened to fit\n", accepted, count);
}

} // namespace

int main(int count, char** arguments)
{
    bool quick = false;
    int descriptors = 0;
    for (int i = 1; i < count; ++i)
    {
        quick = quick || std::strcmp(arguments[i], "--quick") == 0;
        if (std::strcmp(arguments[i], "--descriptors") == 0 && i + 1 < count)
        {
            descriptors = std::atoi(arguments[++i]);
        }
    }
    grid(quick);
    nonsense(descriptors);
    std::printf("%d cases, %d failed\n", gCases, gFailed);
    return gFailed == 0 ? 0 : 1;
}
