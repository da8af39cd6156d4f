//! Ten thousand random field collections and descriptors (VIMDEPLOY_PROPERTY_ROUNDS and _SEED ask for others). What is wrong with them is random too, so the only claims are
//! that nothing crashes (the sanitizers watch), that a refusal is said, and that an acceptance keeps its promises.

#include "doubles.h"
#include "support.h"
#include "tensorrt/version.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>

using namespace vimdeploy::test;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

namespace
{

int64_t fromEnvironment(char const* name, int64_t otherwise)
{
    char const* const text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

class Dice
{
public:
    explicit Dice(uint32_t seed)
        : mEngine(seed)
    {
    }

    int64_t between(int64_t low, int64_t high)
    {
        return std::uniform_int_distribution<int64_t>(low, high)(mEngine);
    }

    bool chance(double probability)
    {
        return std::bernoulli_distribution(probability)(mEngine);
    }

    template <typename T>
    T pick(std::vector<T> const& values)
    {
        return values[static_cast<size_t>(between(0, static_cast<int64_t>(values.size()) - 1))];
    }

    std::vector<char> bytes(size_t count)
    {
        std::vector<char> data(count);
        std::generate(data.begin(), data.end(), [&] { return static_cast<char>(between(-128, 127)); });
        return data;
    }

private:
    std::mt19937 mEngine;
};

//! Attributes that are right more often than not: a generator of pure noise never gets past the first check.
Fields randomFields(Dice& dice, std::string const& op, TensorRTPhase phase, std::deque<std::vector<char>>& storage)
{
    bool const isScan = op.find("SelectiveScan") == 0;
    auto const groups = static_cast<size_t>(dice.pick<int64_t>({1, 2, 4, 2, 1, 0, 3, 5, 200}));
    std::vector<int32_t> directions(groups);
    std::vector<int32_t> columns(dice.chance(0.95) ? groups : groups + 1);
    for (int32_t& value : directions)
    {
        value = dice.pick<int32_t>({1, -1, 1, -1, 1, -1, 1, -1, dice.chance(0.1) ? 7 : 1});
    }
    for (int32_t& value : columns)
    {
        value = dice.pick<int32_t>({0, 0, 1, dice.chance(0.1) ? -1 : 0});
    }
    Fields fields;
    if (op.find("SelectiveScanDelta") == 0)
    {
        fields = deltaFields(static_cast<int32_t>(dice.pick<int64_t>({0, 1, 1, 1, 2})),
            static_cast<int32_t>(dice.pick<int64_t>({0, 1, 0, 1, -1})));
    }
    else if (isScan)
    {
        fields = scanFields(directions, columns, static_cast<int32_t>(dice.pick<int64_t>({1, 2, 5, 0, -4, 2147483647})),
            dice.pick<float>({0.5F, 1.0F, 0.0F, -1.0F, 3e38F, std::numeric_limits<float>::quiet_NaN()}));
    }
    else
    {
        fields = convFields(directions, dice.pick<std::string>({"silu", "none", "", "relu", std::string(300, 'x')}));
    }
    if (phase == TensorRTPhase::kRUNTIME)
    {
        fields.ints(
            "sm_count", {static_cast<int32_t>(dice.pick<int64_t>({1, 58, 132, 256, 132, dice.chance(0.2) ? 0 : 9}))});
        fields.text("kernels", dice.chance(0.95) ? vimdeploy::kSOURCE_HASH : "0123456789ab");
    }
    device().multiprocessors = static_cast<int32_t>(dice.pick<int64_t>({1, 7, 58, 80, 132, 256}));
    std::vector<char const*> const names{"directions", "column_major", "height", "scale", "activation", "unknown", "",
        "plugin_version", "sm_count", "kernels", "delta_softplus", "reverse"};
    if (dice.chance(0.2))
    {
        fields.drop(dice.pick(names));
    }
    while (dice.chance(0.3))
    {
        // Any type over bytes that are large enough for it: TensorRT vouches for that much.
        auto const length = static_cast<int32_t>(dice.between(-3, 9));
        storage.push_back(dice.bytes(static_cast<size_t>(std::max(length, 1)) * sizeof(Dims)));
        void const* const data = dice.chance(0.9) ? storage.back().data() : nullptr;
        char const* const name = dice.chance(0.95) ? dice.pick(names) : nullptr;
        if (name != nullptr && dice.chance(0.7))
        {
            fields.drop(name);
        }
        fields.raw(name, data, static_cast<PluginFieldType>(dice.between(-1, 15)), length);
    }
    return fields;
}

Tensors randomTensors(Dice& dice, std::string const& op, int64_t groups)
{
    bool const isScan = op.find("SelectiveScan") == 0;
    DataType const type = dice.pick<DataType>({DataType::kFLOAT, DataType::kHALF, DataType::kBF16});
    ScanSizes sizes;
    sizes.batch = dice.pick<int64_t>({0, 1, 2, 64});
    sizes.length = dice.pick<int64_t>({1, 2, 10, 200, 197, 1LL << 30});
    sizes.channels = dice.pick<int64_t>({1, 3, 24, 384});
    sizes.states = dice.pick<int64_t>({1, 8, 13, 16, 64, 16, 8, 65});
    sizes.rank = dice.pick<int64_t>({1, 12, 24, 48, 128, 129});
    sizes.groups = dice.chance(0.9) ? groups : dice.pick<int64_t>({1, 2, 4});
    sizes.gated = op.find("NoGate") == std::string::npos;
    sizes.sharedU = dice.chance(0.3);
    sizes.sharedXDbl = dice.chance(0.3);
    Tensors tensors = op.find("SelectiveScanDelta") == 0 ? deltaTensors(sizes, type)
        : isScan ? scanTensors(sizes, type)
                 : convTensors(sizes.batch, sizes.length, sizes.channels, dice.between(1, 5), sizes.groups, type);
    while (dice.chance(0.3))
    {
        auto& extents = tensors.dims[static_cast<size_t>(dice.between(0, tensors.nbInputs()))];
        int64_t const value = dice.pick<int64_t>({0, 1, -1, -2, 3, INT64_MAX, INT64_MIN, 1LL << 31, 1LL << 62});
        if (extents.empty() || dice.chance(0.2))
        {
            extents.resize(static_cast<size_t>(dice.between(0, Dims::MAX_DIMS)), value);
            continue;
        }
        extents[static_cast<size_t>(dice.between(0, static_cast<int64_t>(extents.size()) - 1))] = value;
    }
    while (dice.chance(0.1))
    {
        tensors.types[static_cast<size_t>(dice.between(0, tensors.nbInputs()))]
            = static_cast<DataType>(dice.between(-1, 12));
    }
    return tensors;
}

void bend(Dice& dice, PluginTensorDesc& desc)
{
    if (dice.chance(0.02))
    {
        desc.dims.nbDims = static_cast<int32_t>(dice.pick<int64_t>({-1, -2147483647, 9, 2147483647}));
    }
    if (dice.chance(0.02))
    {
        desc.format = static_cast<TensorFormat>(dice.between(-1, 14));
    }
}

//! How often the random input was good enough to get somewhere.
struct Reached
{
    int32_t created{0};
    int32_t refused{0};
    int32_t configured{0};
    int32_t shaped{0};
    int32_t launched{0};
};

//! Everything TensorRT could ask of one plugin, with descriptors that may be wrong.
void drive(Dice& dice, IPluginV3& plugin, Tensors const& tensors, Reached& reached)
{
    auto descs = tensors.dynamic();
    for (auto& desc : descs)
    {
        bend(dice, desc.desc);
        if (dice.chance(0.1))
        {
            desc.min.nbDims = -1;
        }
        if (dice.chance(0.05))
        {
            desc.max.d[0] = dice.pick<int64_t>({1, 64, -1, INT64_MAX});
        }
    }
    int32_t const nbInputs = tensors.nbInputs() + static_cast<int32_t>(dice.chance(0.05) ? dice.between(-2, 2) : 0);
    auto const* const out = descs.data() + tensors.nbInputs();
    Listener listener;
    auto& builder = build(plugin);
    bool const isConfigured = builder.configurePlugin(descs.data(), nbInputs, out, 1) == 0;
    EXPECT_EQ(isConfigured, listener.text().empty()) << listener.text();
    reached.configured += isConfigured ? 1 : 0;
    static_cast<void>(builder.getWorkspaceSize(descs.data(), nbInputs, out, 1));
    for (int32_t pos = -1; pos <= tensors.nbInputs() + 1; ++pos)
    {
        static_cast<void>(builder.supportsFormatCombination(pos, descs.data(), tensors.nbInputs(), 1));
    }
    DataType answer{DataType::kINT8};
    static_cast<void>(builder.getOutputDataTypes(&answer, 1, tensors.types.data(), nbInputs));

    Expressions expressions;
    std::vector<nvinfer1::DimsExprs> inputs;
    for (int32_t i = 0; i < tensors.nbInputs(); ++i)
    {
        inputs.push_back(expressions.symbolic(tensors.dims[static_cast<size_t>(i)]));
    }
    nvinfer1::DimsExprs output{};
    if (builder.getOutputShapes(inputs.data(), tensors.nbInputs(), nullptr, 0, &output, 1, expressions.builder()) == 0)
    {
        ++reached.shaped;
        EXPECT_GE(output.nbDims, 3);
        EXPECT_TRUE(std::all_of(output.d, output.d + output.nbDims, [](auto const* expr) { return expr != nullptr; }));
    }

    std::unique_ptr<IPluginV3> const copy(runtime(plugin).attachToContext(nullptr));
    int32_t const count = build(*copy).getNbTactics();
    std::vector<int32_t> tactics(static_cast<size_t>(count) + 1);
    EXPECT_EQ(build(*copy).getValidTactics(tactics.data(), count), 0);
    static_cast<void>(
        runtime(*copy).setTactic(dice.chance(0.8) ? tactics[0] : static_cast<int32_t>(dice.between(-9, 9))));
    auto fixed = tensors.fixed();
    for (auto& desc : fixed)
    {
        bend(dice, desc);
    }
    auto const* const fixedOut = fixed.data() + tensors.nbInputs();
    bool const isReady = runtime(*copy).onShapeChange(fixed.data(), tensors.nbInputs(), fixedOut, 1) == 0;
    std::vector<void const*> const addresses(fixed.size(), &answer);
    std::vector<void*> outputs{&answer};
    int const before = launches().scans + launches().convs;
    bool const isLaunched
        = runtime(*copy).enqueue(fixed.data(), fixedOut, addresses.data(), outputs.data(), &answer, nullptr) == 0;
    EXPECT_TRUE(isReady || !isLaunched) << "enqueue() took what onShapeChange() refused";
    EXPECT_LE(launches().scans + launches().convs - before, isLaunched ? 1 : 0);
    reached.launched += launches().scans + launches().convs - before;
}

} // namespace

TEST(Property, RandomFieldsAndDescriptorsNeverCrash)
{
    int64_t const rounds = fromEnvironment("VIMDEPLOY_PROPERTY_ROUNDS", 10000);
    Dice dice(static_cast<uint32_t>(fromEnvironment("VIMDEPLOY_PROPERTY_SEED", 20240731)));
    Reached reached;
    for (int64_t round = 0; round < rounds && !HasFailure(); ++round)
    {
        std::string const op = dice.pick<std::string>(
            {"SelectiveScan", "SelectiveScanNoGate", "CausalConv1d", "SelectiveScanDelta", "SelectiveScanDeltaNoGate"});
        std::deque<std::vector<char>> storage;
        auto const phase = dice.chance(0.5) ? TensorRTPhase::kBUILD : TensorRTPhase::kRUNTIME;
        Fields fields = randomFields(dice, op, phase, storage);
        Listener listener;
        auto const plugin = create(op, fields, phase);
        if (plugin == nullptr)
        {
            ++reached.refused;
            EXPECT_NE(listener.text().find("createPlugin: "), std::string::npos) << "a silent refusal";
            continue;
        }
        ++reached.created;
        EXPECT_EQ(listener.text(), "");
        std::string const state = build(*plugin).getMetadataString();
        auto const* const plan = runtime(*plugin).getFieldsToSerialize();
        ASSERT_NE(plan, nullptr);
        std::unique_ptr<IPluginV3> const restored(creatorOf(op).createPlugin(nullptr, plan, TensorRTPhase::kRUNTIME));
        ASSERT_NE(restored, nullptr) << "refuses its own plan: " << state;
        EXPECT_EQ(build(*restored).getMetadataString(), state);
        drive(dice, *restored, randomTensors(dice, op, plan->fields[0].length), reached);
    }
    device() = {};
    // No part of the claim may be hollow.
    EXPECT_GT(reached.created, rounds / 10);
    EXPECT_GT(reached.refused, rounds / 10);
    EXPECT_GT(reached.configured, rounds / 100);
    EXPECT_GT(reached.shaped, rounds / 100);
    EXPECT_GT(reached.launched, rounds / 100);
    RecordProperty("created", reached.created);
    RecordProperty("configured", reached.configured);
    RecordProperty("launched", reached.launched);
}
