//! \file emulation_test.cpp
//! Runs the kernels on the host and compares them with the float64 reference.
//!
//!     emulation_test [--grid small|gate|full] [--seed N] [--only TEXT] [--types float16] [--far] [--verbose]
//!
//! Status 0: every case within its bound; 1: some are not (each is printed); 97: a rule of the machine was broken.

#include "cases.h"
#include "device_emulation.h"
#include "reference.h"
#include "tensor.h"

#include <cuda_fp16.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <sys/mman.h>

#undef threadIdx
#undef blockIdx
#undef blockDim

namespace vimdeploy
{
namespace testing
{
namespace
{

using reference::Values;

struct Options
{
    std::string grid{"gate"};
    std::string only;
    std::string type;
    uint64_t seed{1};
    bool far{false};
    bool verbose{false};
};

//! Errors relative to the largest value. A float32 result owes float32 accuracy whatever T its inputs were rounded to.
double boundOf(DType output)
{
    return output == DType::kFLOAT32 ? 1e-5 : output == DType::kFLOAT16 ? 2e-3 : 2e-2;
}

struct Outcome
{
    double error{0.0}; //!< relative to the largest reference value
    double bound{0.0};
    bool ok{false};
};

Outcome compare(Tensor& result, Values const& expected, DType type, double floor)
{
    Outcome outcome;
    outcome.bound = boundOf(type);
    double largest = floor;
    for (double const value : expected)
    {
        largest = std::isfinite(value) ? std::max(largest, std::abs(value)) : largest;
    }
    outcome.ok = true;
    for (std::size_t i = 0; i < expected.size(); ++i)
    {
        double const difference = std::abs(result.get(i) - expected[i]) / largest;
        outcome.error = !(difference <= outcome.error) ? difference : outcome.error;
        outcome.ok = outcome.ok && difference <= outcome.bound; // false for NaN
    }
    return outcome;
}

double dtBiasOf(Data data, double uniform)
{
    switch (data)
    {
    case Data::kSMALL_DT: return -9.21 + 0.1 * uniform; // softplus is 1e-4
    case Data::kLARGE_DT: return 21.0 + 3.0 * uniform;
    case Data::kTINY_DT: return -90.0;
    case Data::kZERO: return 0.0;
    default: return -3.0 + 2.0 * uniform;
    }
}

double rateOf(Data data, double state, double uniform)
{
    switch (data)
    {
    case Data::kFLAT_A: return -1e-6;
    case Data::kSTEEP_A: return -1e4;
    case Data::kZERO: return 0.0;
    default: return -(state + 1.0) * (1.0 + 0.1 * uniform);
    }
}

Outcome runScan(ScanCase const& scan, uint64_t seed)
{
    ScanShape const& s = scan.shape;
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform(-1.0, 1.0);
    auto const size = [](auto... factors) { return static_cast<std::size_t>((int64_t{1} * ... * factors)); };
    int64_t const width = s.rank + 2 * s.states;
    bool const off = scan.misaligned;
    double const tiny = s.type == DType::kFLOAT16 ? 3e-6 : 3e-39;
    double const amplitude = scan.data == Data::kZERO ? 0.0 : scan.data == Data::kDENORMAL ? tiny : 1.0;
    bool const noSkip = scan.data == Data::kSMALL_DT || scan.data == Data::kTINY_DT;

    Tensor u(s.type, size(s.sharedU ? 1 : s.groups, s.batch, s.length, s.channels), off);
    bool const given = s.givenDelta;
    Tensor x(s.type, given ? 1 : size(s.sharedXDbl ? 1 : s.groups, s.batch, s.length, width), off);
    Tensor delta(s.type, given ? size(s.batch, s.length, s.channels) : 1, off);
    std::size_t const pair = given ? size(s.batch, s.length, s.channelGroups, s.states) : 1;
    Tensor B(s.type, pair, off);
    Tensor C(s.type, pair, off);
    Tensor A(DType::kFLOAT32, size(s.groups, s.channels, s.states), false);
    Tensor D(DType::kFLOAT32, size(s.groups, s.channels), false);
    Tensor weight(s.type, given ? 1 : size(s.groups, s.channels, s.rank), off);
    Tensor bias(DType::kFLOAT32, size(s.groups, s.channels), false);
    Tensor z(s.type, s.gated ? size(s.batch, s.length, s.channels) : 1, off);
    DType const outputType = s.gated ? s.type : DType::kFLOAT32;
    Tensor y(outputType, size(s.batch, s.length, s.channels), off);

    reference::ScanInputs in;
    in.u = u.fill([&](std::size_t) { return amplitude * normal(generator); });
    in.xDbl = x.fill(
        [&](std::size_t i)
        {
            return (i % static_cast<std::size_t>(width) < static_cast<std::size_t>(s.rank) ? 0.3 : amplitude)
                * normal(generator);
        });
    in.A = A.fill([&](std::size_t i)
        { return rateOf(scan.data, static_cast<double>(i % static_cast<std::size_t>(s.states)), uniform(generator)); });
    in.D = D.fill([&](std::size_t) { return noSkip ? 0.0 : amplitude * normal(generator); });
    double const spread = scan.data == Data::kSMALL_DT ? 0.1 : 1.0;
    in.dtWeight = weight.fill([&](std::size_t)
        { return spread * normal(generator) / std::sqrt(std::max(1.0, static_cast<double>(s.rank))); });
    // Without softplus delta is what the caller says, and a negative one would let the state grow without bounds.
    bool const plain = given && !s.deltaSoftplus;
    in.delta = delta.fill(
        [&](std::size_t)
        {
            double const value = 0.3 * spread * normal(generator);
            return plain ? std::abs(value) : value;
        });
    in.B = B.fill([&](std::size_t) { return amplitude * normal(generator); });
    in.C = C.fill([&](std::size_t) { return amplitude * normal(generator); });
    in.dtBias = bias.fill([&](std::size_t) { return plain ? 0.01 : dtBiasOf(scan.data, uniform(generator)); });
    in.z = z.fill([&](std::size_t) { return (scan.data == Data::kDENORMAL ? tiny : 2.0) * normal(generator); });

    char message[kMESSAGE_SIZE];
    if (char const* problem = checkScanShape(s, message, sizeof(message)))
    {
        emulation::fault(problem);
    }
    ScanPlan const plan = scan.variant == ScanVariant::kNONE ? planScan(s, scan.smCount)
                                                             : planScanVariant(s, scan.variant, scan.smCount);
    // Not a byte more than the plan asks for, so that AddressSanitizer stands right behind it.
    std::size_t const workspaceBytes = planWorkspaceSize(s, plan);
    if (workspaceBytes > scanWorkspaceSize(s, plan.variant, scan.smCount))
    {
        emulation::fault("a plan needs more workspace than scanWorkspaceSize promised");
    }
    Tensor workspace(DType::kFLOAT32, std::max<std::size_t>(workspaceBytes / 4, 1), false);
    ScanPointers pointers;
    pointers.u = u.data();
    pointers.xDbl = given ? nullptr : x.data();
    pointers.A = static_cast<float*>(A.data());
    pointers.D = static_cast<float*>(D.data());
    pointers.dtWeight = given ? nullptr : weight.data();
    pointers.dtBias = static_cast<float*>(bias.data());
    pointers.delta = given ? delta.data() : nullptr;
    pointers.B = given ? B.data() : nullptr;
    pointers.C = given ? C.data() : nullptr;
    pointers.z = s.gated ? z.data() : nullptr;
    pointers.y = y.data();
    Workspace const room{workspaceBytes > 0 ? workspace.data() : nullptr, workspaceBytes};
    LaunchStatus const status = launchScan(s, plan, pointers, room, nullptr);
    if (!status.ok())
    {
        emulation::fault(status.isRefusal() ? status.refusal : "the scan was not launched");
    }
    // Denormals are flushed and rounded away: what is owed is a result below the smallest normal number of T.
    double const floor = scan.data == Data::kDENORMAL ? 1.2e-38 : 1e-30;
    return compare(y, reference::scan(s, in), outputType,
        scan.data == Data::kDENORMAL && outputType == DType::kFLOAT16 ? 6.1e-5 : floor);
}

Outcome runConv(ConvCase const& conv, uint64_t seed)
{
    ConvShape const& s = conv.shape;
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal;
    auto const size = [](auto... factors) { return static_cast<std::size_t>((int64_t{1} * ... * factors)); };
    Tensor x(s.type, size(s.batch, s.length, s.channels), conv.misaligned);
    Tensor weight(s.type, size(s.groups, s.channels, s.width), conv.misaligned);
    Tensor bias(s.type, size(s.groups, s.channels), false);
    Tensor u(s.type, size(s.groups, s.batch, s.length, s.channels), conv.misaligned);
    reference::ConvInputs in;
    auto const random = [&](std::size_t) { return normal(generator); };
    in.x = x.fill(random);
    in.weight = weight.fill(random);
    in.bias = bias.fill(random);
    char message[kMESSAGE_SIZE];
    if (char const* problem = checkConvShape(s, message, sizeof(message)))
    {
        emulation::fault(problem);
    }
    if (!launchConv(s, {x.data(), weight.data(), bias.data(), u.data()}, nullptr).ok())
    {
        emulation::fault("launchConv refused a case of the grid");
    }
    return compare(u, reference::conv(s, in), s.type, 1e-30);
}

bool isWanted(Options const& options, std::string const& name)
{
    return name.find(options.only) != std::string::npos && name.find(options.type) != std::string::npos;
}

template <typename Case, typename Run>
void runAll(Options const& options, std::vector<Case> const& cases, Run const& run, int& ran, int& failed)
{
    double worst[3]{};
    for (std::size_t i = 0; i < cases.size(); ++i)
    {
        std::string const name = nameOf(cases[i]);
        if (!isWanted(options, name))
        {
            continue;
        }
        emulation::setSeed(options.seed + i);
        Outcome const outcome = run(cases[i], options.seed * 1000003U + i);
        ++ran;
        failed += outcome.ok ? 0 : 1;
        double& slot = worst[outcome.bound < 1e-4 ? 0 : outcome.bound < 1e-2 ? 1 : 2];
        slot = !(outcome.error <= slot) ? outcome.error : slot;
        if (!outcome.ok || options.verbose)
        {
            std::printf("%s %s: error %.3g of the maximum, %.0e allowed\n", outcome.ok ? "ok  " : "FAIL", name.c_str(),
                outcome.error, outcome.bound);
        }
    }
    std::printf("largest errors: float32 %.2g, float16 %.2g, bfloat16 %.2g\n", worst[0], worst[1], worst[2]);
}

//! Tensors past 2^31 elements, of which only the first and the last blocks are run; the memory is mapped, not touched.
void runFar(int& ran, int& failed)
{
    ScanShape s;
    s.batch = (int64_t{1} << 20) + 3;
    s.length = 1;
    s.channels = 2056;
    s.states = 1;
    s.rank = 1;
    s.groups = 2;
    s.directions[1] = -1;
    s.gated = true;
    s.type = DType::kFLOAT16;
    int64_t const cells = s.batch * s.channels;
    auto const map = [](int64_t elements, std::size_t bytes)
    {
        void* at = mmap(nullptr, static_cast<std::size_t>(elements) * bytes, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return at == MAP_FAILED ? nullptr : at;
    };
    auto* u = static_cast<__half*>(map(2 * cells, 2));
    auto* z = static_cast<__half*>(map(cells, 2));
    auto* y = static_cast<__half*>(map(cells, 2));
    auto* x = static_cast<__half*>(map(2 * s.batch * 3, 2));
    std::vector<float> zeros(static_cast<std::size_t>(2 * s.channels), 0.0F);
    std::vector<float> ones(static_cast<std::size_t>(2 * s.channels), 1.0F);
    std::vector<__half> weight(static_cast<std::size_t>(2 * s.channels), __float2half_rn(0.0F));
    ++ran;
    if (u == nullptr || z == nullptr || y == nullptr || x == nullptr)
    {
        std::printf("FAIL far: no address space for %lld elements\n", static_cast<long long>(cells));
        ++failed;
        return;
    }
    // D u is all that is left: y = silu(1) * (u of one side + u of the other), at the last cells of the last sample.
    int64_t const last = cells - 1;
    u[last] = __float2half_rn(3.0F);
    u[cells + last] = __float2half_rn(5.0F);
    z[last] = __float2half_rn(1.0F);
    emulation::setBlockFilter(3);
    ScanPlan const plan = planScanVariant(s, ScanVariant::kTHREAD_1, 132);
    ScanPointers pointers;
    pointers.u = u;
    pointers.xDbl = x;
    pointers.A = pointers.dtBias = zeros.data();
    pointers.D = ones.data();
    pointers.dtWeight = weight.data();
    pointers.z = z;
    pointers.y = y;
    std::size_t const bytes = scanWorkspaceSize(s, plan.variant, 132);
    Workspace const workspace{map(static_cast<int64_t>(bytes), 1), bytes};
    LaunchStatus const status = launchScan(s, plan, pointers, workspace, nullptr);
    emulation::setBlockFilter(0);
    double const expected = 8.0 * reference::silu(1.0);
    double const got = __half2float(y[last]);
    bool const ok = status.ok() && std::abs(got - expected) <= 1e-2;
    failed += ok ? 0 : 1;
    std::printf(
        "%s far: element %lld is %g, %g expected\n", ok ? "ok  " : "FAIL", static_cast<long long>(last), got, expected);
}

int runEverything(Options const& options)
{
    int ran = 0;
    int failed = 0;
    runAll(options, scanCases(options.grid), runScan, ran, failed);
    runAll(options, convCases(options.grid), runConv, ran, failed);
    if (options.far)
    {
        runFar(ran, failed);
    }
    std::printf("%d cases, %d failed\n", ran, failed);
    return failed == 0 && ran > 0 ? 0 : 1;
}

} // namespace
} // namespace testing
} // namespace vimdeploy

int main(int argc, char** argv)
{
    vimdeploy::testing::Options options;
    for (int i = 1; i < argc; ++i)
    {
        std::string const key = argv[i];
        if (key == "--far" || key == "--verbose")
        {
            (key == "--far" ? options.far : options.verbose) = true;
            continue;
        }
        std::string const value = i + 1 < argc ? argv[++i] : "";
        if (key == "--grid")
        {
            options.grid = value;
        }
        else if (key == "--seed")
        {
            options.seed = std::strtoull(value.c_str(), nullptr, 10);
        }
        else if (key == "--only")
        {
            options.only = value;
        }
        else if (key == "--types")
        {
            options.type = value;
        }
        else
        {
            std::fprintf(stderr, "unknown option %s\n", key.c_str());
            return 2;
        }
    }
    return vimdeploy::testing::runEverything(options);
}
