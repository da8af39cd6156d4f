//! Output shapes, types and formats, and what is refused when the descriptors do not fit.

#include "support.h"

#include <gtest/gtest.h>

using namespace vimdeploy::test;
using nvinfer1::TensorFormat;

namespace
{

constexpr int64_t kANY{-1};

std::unique_ptr<IPluginV3> makeScan(bool gated = true)
{
    Fields fields = scanFields();
    return create(gated ? "SelectiveScan" : "SelectiveScanNoGate", fields);
}

std::unique_ptr<IPluginV3> makeConv()
{
    Fields fields = convFields();
    return create("CausalConv1d", fields);
}

//! The output shape for symbolic inputs \p dims (without the output), empty when refused.
std::vector<int64_t> outputShape(IPluginV3& plugin, std::vector<std::vector<int64_t>> const& dims)
{
    Expressions expressions;
    std::vector<nvinfer1::DimsExprs> inputs;
    for (auto const& extents : dims)
    {
        inputs.push_back(expressions.symbolic(extents));
    }
    nvinfer1::DimsExprs output{};
    if (build(plugin).getOutputShapes(
            inputs.data(), static_cast<int32_t>(inputs.size()), nullptr, 0, &output, 1, expressions.builder())
        != 0)
    {
        return {};
    }
    std::vector<int64_t> extents;
    for (int32_t axis = 0; axis < output.nbDims; ++axis)
    {
        extents.push_back(Expressions::valueOf(output.d[axis]));
    }
    return extents;
}

std::vector<std::vector<int64_t>> inputsOf(Tensors tensors)
{
    tensors.dims.pop_back();
    return tensors.dims;
}

void expectRefused(IPluginV3& plugin, Tensors const& tensors, std::string const& words)
{
    Listener listener;
    EXPECT_NE(configure(plugin, tensors), 0);
    EXPECT_NE(listener.text().find("configurePlugin: " + words), std::string::npos)
        << "said: " << listener.text() << "expected: " << words;
}

} // namespace

TEST(OutputShape, FollowsTheInputs)
{
    EXPECT_EQ(outputShape(*makeConv(), inputsOf(convTensors())), (std::vector<int64_t>{2, 2, 17, 24}));
    EXPECT_EQ(outputShape(*makeScan(), inputsOf(scanTensors())), (std::vector<int64_t>{2, 17, 24}));
    ScanSizes sizes;
    sizes.gated = false;
    sizes.sharedU = true;
    sizes.sharedXDbl = true;
    EXPECT_EQ(outputShape(*makeScan(false), inputsOf(scanTensors(sizes))), (std::vector<int64_t>{2, 17, 24}));
}

TEST(OutputShape, StaysSymbolicWhereTheBatchAndTheLengthAre)
{
    EXPECT_EQ(
        outputShape(*makeConv(), {{kANY, kANY, kANY}, {2, 24, 4}, {2, 24}}), (std::vector<int64_t>{2, kANY, kANY, 24}));
    // E is symbolic in the activations, but the weights know it.
    EXPECT_EQ(
        outputShape(*makeScan(),
            {{2, kANY, 17, kANY}, {2, kANY, 17, 35}, {2, 24, 16}, {2, 24}, {2, 24, 3}, {2, 24}, {kANY, kANY, kANY}}),
        (std::vector<int64_t>{kANY, 17, 24}));
}

TEST(OutputShape, IsRefusedWhereConstantsDisagree)
{
    Listener listener;
    auto const plugin = makeScan();
    EXPECT_TRUE(outputShape(
        *plugin, {{2, kANY, 17, 24}, {2, kANY, 17, 35}, {2, 25, 16}, {2, 24}, {2, 24, 3}, {2, 24}, {kANY, 17, 24}})
            .empty());
    EXPECT_NE(listener.text().find("getOutputShapes: A has E = 25 (axis 1), but u has 24"), std::string::npos)
        << listener.text();
}

TEST(OutputShape, RefusesAWrongNumberOfTensors)
{
    Listener listener;
    EXPECT_TRUE(outputShape(*makeConv(), {{2, 17, 24}}).empty());
    EXPECT_NE(listener.text().find("1 inputs and 1 outputs, expected 3 and 1"), std::string::npos) << listener.text();
}

TEST(OutputType, IsThatOfTheActivationsAndFloatWithoutAGate)
{
    for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16})
    {
        auto const conv = convTensors(2, 17, 24, 4, 2, type);
        DataType answer{DataType::kINT8};
        EXPECT_EQ(build(*makeConv()).getOutputDataTypes(&answer, 1, conv.types.data(), 3), 0);
        EXPECT_EQ(answer, type);
        ScanSizes sizes;
        auto const gated = scanTensors(sizes, type);
        EXPECT_EQ(build(*makeScan()).getOutputDataTypes(&answer, 1, gated.types.data(), 7), 0);
        EXPECT_EQ(answer, type);
        EXPECT_EQ(build(*makeScan(false)).getOutputDataTypes(&answer, 1, gated.types.data(), 6), 0);
        EXPECT_EQ(answer, DataType::kFLOAT);
    }
    Listener listener;
    DataType answer{DataType::kINT8};
    auto types = scanTensors().types;
    types[2] = DataType::kHALF;
    EXPECT_NE(build(*makeScan()).getOutputDataTypes(&answer, 1, types.data(), 7), 0);
    EXPECT_NE(listener.text().find("A is HALF, expected FLOAT always"), std::string::npos) << listener.text();
    types = scanTensors().types;
    types[6] = DataType::kBF16;
    listener.clear();
    EXPECT_NE(build(*makeScan()).getOutputDataTypes(&answer, 1, types.data(), 7), 0);
    EXPECT_NE(listener.text().find("z is BF16, expected HALF like u"), std::string::npos) << listener.text();
}

TEST(Formats, OnlyLinearAndOnlyTheTypesOfTheContract)
{
    std::vector<DataType> const all{DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8,
        DataType::kINT32, DataType::kINT64, DataType::kBOOL, DataType::kUINT8, DataType::kFP8};
    for (bool const gated : {true, false})
    {
        auto const plugin = makeScan(gated);
        ScanSizes sizes;
        sizes.gated = gated;
        for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16})
        {
            Tensors const tensors = scanTensors(sizes, type);
            int32_t const nbInputs = tensors.nbInputs();
            for (int32_t pos = 0; pos <= nbInputs; ++pos)
            {
                for (DataType const candidate : all)
                {
                    auto descs = tensors.dynamic();
                    descs[static_cast<size_t>(pos)].desc.type = candidate;
                    bool const wanted = pos == 0
                        ? candidate == DataType::kFLOAT || candidate == DataType::kHALF || candidate == DataType::kBF16
                        : candidate == tensors.types[static_cast<size_t>(pos)];
                    EXPECT_EQ(build(*plugin).supportsFormatCombination(pos, descs.data(), nbInputs, 1), wanted)
                        << "tensor " << pos << " as " << static_cast<int>(candidate);
                }
                for (TensorFormat const format : {TensorFormat::kCHW2, TensorFormat::kHWC8, TensorFormat::kCHW32})
                {
                    auto descs = tensors.dynamic();
                    descs[static_cast<size_t>(pos)].desc.format = format;
                    EXPECT_FALSE(build(*plugin).supportsFormatCombination(pos, descs.data(), nbInputs, 1));
                }
            }
        }
    }
}

TEST(Formats, TheDecisionReadsNothingBehindThePosition)
{
    // TensorRT leaves garbage there.
    auto const plugin = makeScan();
    auto descs = scanTensors().dynamic();
    for (size_t i = 1; i < descs.size(); ++i)
    {
        descs[i].desc.type = static_cast<DataType>(-77);
        descs[i].desc.format = static_cast<TensorFormat>(-77);
    }
    EXPECT_TRUE(build(*plugin).supportsFormatCombination(0, descs.data(), 7, 1));
    Listener listener;
    EXPECT_FALSE(build(*plugin).supportsFormatCombination(8, descs.data(), 7, 1));
    EXPECT_FALSE(build(*plugin).supportsFormatCombination(-1, descs.data(), 7, 1));
    EXPECT_NE(listener.text().find("tensor 8 of 8 was asked for"), std::string::npos);
}

TEST(Configure, AcceptsEveryServedShape)
{
    Listener listener;
    for (int64_t const states : {1, 8, 13, 16, 64})
    {
        for (int64_t const rank : {1, 12, 128})
        {
            ScanSizes sizes;
            sizes.states = states;
            sizes.rank = rank;
            EXPECT_EQ(configure(*makeScan(), scanTensors(sizes)), 0) << "N " << states << " R " << rank;
        }
    }
    for (int64_t const width : {2, 3, 4})
    {
        EXPECT_EQ(configure(*makeConv(), convTensors(2, 17, 24, width)), 0);
    }
    EXPECT_EQ(listener.text(), "");
}

TEST(Configure, NamesTheTensorAndTheNumber)
{
    auto const scan = makeScan();
    auto const bent = [](size_t tensor, std::vector<int64_t> dims)
    {
        Tensors tensors = scanTensors();
        tensors.dims[tensor] = std::move(dims);
        return tensors;
    };
    expectRefused(*scan, bent(0, {2, 17, 24}), "u has rank 3, expected 4");
    expectRefused(*scan, bent(0, {3, 2, 17, 24}), "u has G = 3 (axis 0), but attribute 'directions' has 2");
    expectRefused(*scan, bent(1, {2, 2, 17, 36}), "x_dbl has 36 columns, expected R + 2N = 3 + 2 * 16 = 35");
    expectRefused(*scan, bent(1, {2, 2, 18, 35}), "x_dbl has L = 18 (axis 2), but u has 17");
    expectRefused(*scan, bent(2, {2, 24, 65}), "A has N = 65, this plugin serves 1 to 64");
    expectRefused(*scan, bent(3, {2, 23}), "D has E = 23 (axis 1), but u has 24");
    expectRefused(*scan, bent(4, {2, 24, 129}), "dt_weight has R = 129, this plugin serves 1 to 128");
    expectRefused(*scan, bent(5, {1, 24}), "dt_bias has G = 1 (axis 0), but attribute 'directions' has 2");
    expectRefused(*scan, bent(6, {3, 17, 24}), "z has B = 3 (axis 0), but u has 2");
    expectRefused(*scan, bent(7, {2, 17, 25}), "y has E = 25 (axis 2), but u has 24");
    expectRefused(*scan, bent(0, {2, 2, 17, -7}), "u has the extent -7 on axis 3");

    auto const conv = makeConv();
    expectRefused(*conv, convTensors(2, 17, 24, 5), "weight has K = 5, this plugin serves 2 to 4");
    expectRefused(*conv, convTensors(2, 17, 24, 1), "weight has K = 1, this plugin serves 2 to 4");
    expectRefused(*conv, convTensors(2, 0, 24, 4), "x has L = 0, this plugin serves 1 to");
    expectRefused(*conv, convTensors(2147483647, 2147483647, 2147483647, 4), "the tensors are too large");

    Tensors types = scanTensors();
    types.types[5] = DataType::kHALF;
    expectRefused(*scan, types, "dt_bias is HALF, expected FLOAT always");
    types = scanTensors();
    types.types[7] = DataType::kFLOAT;
    expectRefused(*scan, types, "y is FLOAT, expected HALF");
    types = scanTensors();
    types.types[0] = DataType::kINT8;
    expectRefused(*scan, types, "u is INT8, expected FLOAT, HALF or BF16");
}

TEST(Configure, AGridMustFillItsRows)
{
    Fields fields = scanFields({1, 1, -1, -1}, {0, 1, 0, 1}, 5, 1.0F);
    auto const plugin = create("SelectiveScanNoGate", fields);
    ScanSizes sizes;
    sizes.groups = 4;
    sizes.gated = false;
    sizes.length = 35;
    EXPECT_EQ(configure(*plugin, scanTensors(sizes)), 0);
    sizes.length = 36;
    expectRefused(*plugin, scanTensors(sizes), "u has L = 36 tokens, which is no multiple of attribute 'height' = 5");
}

TEST(Configure, ChecksEveryCornerOfAProfile)
{
    auto const plugin = makeScan();
    auto descs = scanTensors().dynamic();
    for (size_t i : {size_t{0}, size_t{1}})
    {
        descs[i].desc.dims.d[1] = kANY;
        descs[i].min.d[1] = 1;
        descs[i].max.d[1] = 64;
    }
    for (size_t i : {size_t{6}, size_t{7}})
    {
        descs[i].desc.dims.d[0] = kANY;
        descs[i].min.d[0] = 1;
        descs[i].max.d[0] = 64;
    }
    EXPECT_EQ(build(*plugin).configurePlugin(descs.data(), 7, descs.data() + 7, 1), 0);
    descs[6].max.d[0] = 63;
    Listener listener;
    EXPECT_NE(build(*plugin).configurePlugin(descs.data(), 7, descs.data() + 7, 1), 0);
    EXPECT_NE(listener.text().find("z has B = 63 (axis 0), but u has 64"), std::string::npos) << listener.text();
}
