//! Creators and attributes: what is listed, what is accepted, what is refused and with which words.

#include "support.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

using namespace vimdeploy::test;
using nvinfer1::TensorRTPhase;
using ::testing::Test;

namespace
{

bool contains(std::string const& text, std::string const& part)
{
    return text.find(part) != std::string::npos;
}

//! Expects that \p op refuses \p fields in a message with \p words in it.
void expectRefused(std::string const& op, Fields fields, std::string const& words)
{
    Listener listener;
    EXPECT_EQ(create(op, fields), nullptr);
    EXPECT_TRUE(contains(listener.text(), words)) << "said: " << listener.text() << "expected: " << words;
    EXPECT_TRUE(contains(listener.text(), "vimdeploy " + op + " (/layer/7), createPlugin: ")) << listener.text();
}

} // namespace

TEST(Creators, ListTheOpsUnderOneNamespaceAndVersion)
{
    int32_t count{0};
    auto* const creators = getCreators(count);
    ASSERT_EQ(count, 5);
    std::vector<std::string> names;
    for (int32_t i = 0; i < count; ++i)
    {
        auto& creator = *static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        EXPECT_STREQ(creator.getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE");
        EXPECT_STREQ(creator.getPluginVersion(), "1");
        EXPECT_STREQ(creator.getPluginNamespace(), "vimdeploy");
        names.emplace_back(creator.getPluginName());
    }
    EXPECT_EQ(names,
        (std::vector<std::string>{
            "CausalConv1d", "SelectiveScan", "SelectiveScanNoGate", "SelectiveScanDelta", "SelectiveScanDeltaNoGate"}));
    // The registry keeps these pointers: a second call must answer the same objects.
    int32_t again{0};
    EXPECT_EQ(getCreators(again), creators);
}

TEST(Creators, FieldNamesListEveryAttribute)
{
    auto const names = [](std::string const& op)
    {
        auto const* const fields = creatorOf(op).getFieldNames();
        std::map<std::string, PluginFieldType> found;
        for (int32_t i = 0; i < fields->nbFields; ++i)
        {
            found[fields->fields[i].name] = fields->fields[i].type;
        }
        return found;
    };
    std::map<std::string, PluginFieldType> const scan{{"directions", PluginFieldType::kINT32},
        {"column_major", PluginFieldType::kINT32}, {"height", PluginFieldType::kINT32},
        {"scale", PluginFieldType::kFLOAT32}};
    EXPECT_EQ(names("SelectiveScan"), scan);
    EXPECT_EQ(names("SelectiveScanNoGate"), scan);
    EXPECT_EQ(names("CausalConv1d"),
        (std::map<std::string, PluginFieldType>{
            {"directions", PluginFieldType::kINT32}, {"activation", PluginFieldType::kCHAR}}));
}

TEST(Creators, PluginsHaveAllThreeCapabilitiesInBothPhases)
{
    for (TensorRTPhase const phase : {TensorRTPhase::kBUILD, TensorRTPhase::kRUNTIME})
    {
        for (std::string const op :
            {"CausalConv1d", "SelectiveScan", "SelectiveScanNoGate", "SelectiveScanDelta", "SelectiveScanDeltaNoGate"})
        {
            Fields fields = fieldsOf(op);
            if (phase == TensorRTPhase::kRUNTIME)
            {
                fields = planOf(*create(op, fields));
            }
            auto const plugin = create(op, fields, phase);
            ASSERT_NE(plugin, nullptr) << op;
            EXPECT_STREQ(core(*plugin).getPluginName(), op.c_str());
            EXPECT_STREQ(core(*plugin).getPluginVersion(), "1");
            EXPECT_STREQ(core(*plugin).getPluginNamespace(), "vimdeploy");
            EXPECT_STREQ(core(*plugin).getInterfaceInfo().kind, "PLUGIN_V3ONE_CORE");
            EXPECT_STREQ(build(*plugin).getInterfaceInfo().kind, "PLUGIN_V3ONE_BUILD");
            EXPECT_STREQ(runtime(*plugin).getInterfaceInfo().kind, "PLUGIN_V3ONE_RUNTIME");
            EXPECT_EQ(build(*plugin).getNbOutputs(), 1);
            EXPECT_EQ(plugin->getCapabilityInterface(static_cast<nvinfer1::PluginCapabilityType>(3)), nullptr);
        }
    }
}

TEST(Attributes, EveryOneIsRequired)
{
    for (char const* const name : {"directions", "column_major", "height", "scale"})
    {
        expectRefused("SelectiveScan", scanFields().drop(name), std::string("attribute '") + name + "' is missing");
    }
    for (char const* const name : {"directions", "activation"})
    {
        expectRefused("CausalConv1d", convFields().drop(name), std::string("attribute '") + name + "' is missing");
    }
}

TEST(Attributes, FlagsAreZeroOrOne)
{
    expectRefused("SelectiveScanDelta", deltaFields().drop("reverse"), "attribute 'reverse' is missing");
    expectRefused("SelectiveScanDelta", deltaFields(2, 0), "attribute 'delta_softplus' is 2, expected 0 or 1");
    expectRefused("SelectiveScanDeltaNoGate", deltaFields(1, -1), "attribute 'reverse' is -1, expected 0 or 1");
}

TEST(Attributes, UnknownTwiceAndMalformedOnesAreRefused)
{
    expectRefused("SelectiveScan", scanFields().number("skale", 1.0F), "unknown attribute 'skale'");
    expectRefused("SelectiveScan", scanFields().number("scale", 1.0F), "attribute 'scale' is given twice");
    expectRefused(
        "CausalConv1d", convFields().raw(nullptr, nullptr, PluginFieldType::kINT32, 0), "field 2 has no name");
    expectRefused("CausalConv1d",
        convFields({1}).drop("directions").raw("directions", nullptr, PluginFieldType::kINT32, 2),
        "attribute 'directions' is malformed: 2 values");
    int32_t const one{1};
    expectRefused("CausalConv1d", convFields().drop("directions").raw("directions", &one, PluginFieldType::kINT32, -1),
        "attribute 'directions' is malformed: -1 values");
    Listener listener;
    EXPECT_EQ(creatorOf("SelectiveScan").createPlugin("x", nullptr, TensorRTPhase::kBUILD), nullptr);
    EXPECT_TRUE(contains(listener.text(), "the field collection is null"));
    nvinfer1::PluginFieldCollection const broken{3, nullptr};
    EXPECT_EQ(creatorOf("SelectiveScan").createPlugin(nullptr, &broken, TensorRTPhase::kBUILD), nullptr);
    EXPECT_TRUE(contains(listener.text(), "the field collection is malformed: 3 fields"));
}

TEST(Attributes, WrongTypesAreNamed)
{
    expectRefused("SelectiveScan", scanFields().drop("height").number("height", 1.0F),
        "attribute 'height' has field type 1, expected INT32");
    expectRefused("SelectiveScan", scanFields().drop("scale").ints("scale", {1}),
        "attribute 'scale' has field type 5, expected FLOAT32");
    expectRefused("CausalConv1d", convFields().drop("activation").ints("activation", {1}),
        "attribute 'activation' has field type 5, expected CHAR");
}

TEST(Attributes, WrongValuesAreNamed)
{
    expectRefused("SelectiveScan", scanFields({1, 0}), "attribute 'directions' has 0 for group 1, expected 1 or -1");
    expectRefused("SelectiveScan", scanFields({1, -1, 1}, {0, 0, 0}), "attribute 'directions' has 3 values");
    expectRefused("SelectiveScan", scanFields({}, {}), "attribute 'directions' has 0 values");
    expectRefused(
        "SelectiveScan", scanFields({1, -1}, {0}), "attribute 'column_major' has 1 values, but 'directions' has 2");
    expectRefused("SelectiveScan", scanFields({1, -1}, {0, 2}, 4), "attribute 'column_major' has 2 for group 1");
    expectRefused(
        "SelectiveScan", scanFields({1, -1}, {0, 1}, 0), "attribute 'height' is 0, but group 1 is column-major");
    expectRefused("SelectiveScan", scanFields({1}, {0}, 1, std::numeric_limits<float>::quiet_NaN()),
        "attribute 'scale' is nan, expected a finite");
    expectRefused(
        "SelectiveScan", scanFields({1}, {0}, 1, std::numeric_limits<float>::infinity()), "attribute 'scale' is inf");
    expectRefused("SelectiveScan", scanFields().drop("height").ints("height", {1, 2}),
        "attribute 'height' has 2 values, expected 1");
    expectRefused("SelectiveScan", scanFields().drop("height").longs("height", {int64_t{1} << 40}),
        "attribute 'height' has the value 1099511627776, which does not fit 32 bits");
    expectRefused(
        "CausalConv1d", convFields({1, -1}, "relu"), "attribute 'activation' is 'relu', expected 'silu' or 'none'");
    expectRefused("CausalConv1d", convFields({1, -1}, ""), "attribute 'activation' is ''");
}

TEST(Attributes, WhatOtherWritersSendIsRead)
{
    // numpy integers arrive as INT64, some writers count the terminating NUL, and hand-written collections carry the
    // attributes by which the parser finds the plugin.
    Listener listener;
    Fields scan = scanFields().drop("directions").drop("height");
    scan.longs("directions", {1, -1})
        .longs("height", {1})
        .text("plugin_version", "1")
        .text("plugin_namespace", "vimdeploy");
    EXPECT_NE(create("SelectiveScan", scan), nullptr);
    Fields conv = convFields({1}, std::string("none\0", 5));
    auto const plugin = create("CausalConv1d", conv);
    ASSERT_NE(plugin, nullptr);
    EXPECT_STREQ(build(*plugin).getMetadataString(), "vimdeploy::CausalConv1d;version=1;directions=1;activation=none");
    EXPECT_EQ(listener.text(), "");
}
