//! Serialise, deserialise, clone; tactics, workspace and what reaches the kernels.

#include "doubles.h"
#include "support.h"
#include "tensorrt/cuda_runtime.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

using namespace vimdeploy;
using namespace vimdeploy::test;
using nvinfer1::TensorRTPhase;

namespace
{

std::unique_ptr<IPluginV3> makeScan(Fields fields = scanFields())
{
    return create("SelectiveScan", fields);
}

//! Everything that an attribute can change, in words.
std::string stateOf(IPluginV3& plugin)
{
    return std::string(build(plugin).getMetadataString()) + "|" + build(plugin).getTimingCacheID();
}

void* const kWORKSPACE{reinterpret_cast<void*>(uintptr_t{4096})};

class Runtime : public ::testing::Test
{
protected:
    void SetUp() override
    {
        launches() = {};
    }
};

} // namespace

TEST(RoundTrip, EveryAttributeSurvivesPlanAndClone)
{
    struct Case
    {
        std::string op;
        Fields fields;
        std::string metadata;
    };
    std::vector<Case> cases;
    cases.push_back({"SelectiveScan", scanFields({-1}, {0}, 1, 1.0F),
        "vimdeploy::SelectiveScan;version=1;directions=-1;column_major=0;height=1;scale=0x1p+0"});
    cases.push_back({"SelectiveScan", scanFields({1, -1}, {0, 0}, 1, 0.1F),
        "vimdeploy::SelectiveScan;version=1;directions=1,-1;column_major=0,0;height=1;scale=0x1.99999ap-4"});
    cases.push_back({"SelectiveScanNoGate", scanFields({1, 1, -1, -1}, {0, 1, 0, 1}, 14, 1.0F),
        "vimdeploy::SelectiveScanNoGate;version=1;directions=1,1,-1,-1;column_major=0,1,0,1;height=14;scale=0x1p+0"});
    cases.push_back({"CausalConv1d", convFields({-1, 1}, "none"),
        "vimdeploy::CausalConv1d;version=1;directions=-1,1;activation=none"});
    for (Case& test : cases)
    {
        auto original = create(test.op, test.fields);
        ASSERT_NE(original, nullptr);
        EXPECT_EQ(build(*original).getMetadataString(), test.metadata);
        Fields plan = planOf(*original);
        auto restored = create(test.op, plan, TensorRTPhase::kRUNTIME);
        ASSERT_NE(restored, nullptr);
        std::unique_ptr<IPluginV3> const copy(restored->clone());
        std::unique_ptr<IPluginV3> const attached(runtime(*copy).attachToContext(nullptr));
        std::string const expected = stateOf(*original);
        // The copies must not lean on what they were copied from.
        original.reset();
        restored.reset();
        EXPECT_EQ(stateOf(*copy), expected);
        EXPECT_EQ(stateOf(*attached), expected);
        Fields again = planOf(*attached);
        EXPECT_EQ(stateOf(*create(test.op, again, TensorRTPhase::kRUNTIME)), expected);
    }
}

TEST(RoundTrip, TimingsAreSharedOnlyByEqualAttributes)
{
    std::set<std::string> ids;
    size_t count{0};
    for (float const scale : {0.5F, 1.0F, std::nextafter(1.0F, 2.0F)})
    {
        for (auto const& directions : {std::vector<int32_t>{1, -1}, {-1, 1}})
        {
            for (int32_t const height : {1, 7})
            {
                ids.insert(build(*makeScan(scanFields(directions, {0, 1}, height, scale))).getTimingCacheID());
                ++count;
            }
        }
    }
    EXPECT_EQ(ids.size(), count);
    EXPECT_EQ(std::string(build(*makeScan()).getTimingCacheID()), build(*makeScan()).getTimingCacheID());
    // Timings of other kernels are worth nothing.
    EXPECT_NE(std::string(build(*makeScan()).getTimingCacheID()).find(";kernels="), std::string::npos);
}

TEST_F(Runtime, TacticsAreUniqueNonZeroAndSurviveACopy)
{
    auto const plugin = makeScan();
    EXPECT_EQ(build(*plugin).getNbTactics(), 0) << "before configurePlugin() nothing is known";
    for (int64_t const states : {1, 8, 13, 16, 64})
    {
        ScanSizes sizes;
        sizes.states = states;
        ASSERT_EQ(configure(*plugin, scanTensors(sizes)), 0);
        std::unique_ptr<IPluginV3> const copy(plugin->clone());
        int32_t const count = build(*copy).getNbTactics();
        ASSERT_GE(count, 1) << "N " << states;
        std::vector<int32_t> tactics(static_cast<size_t>(count));
        ASSERT_EQ(build(*copy).getValidTactics(tactics.data(), count), 0);
        EXPECT_EQ(std::set<int32_t>(tactics.begin(), tactics.end()).size(), tactics.size());
        EXPECT_EQ(std::count(tactics.begin(), tactics.end(), 0), 0);
        for (int32_t const tactic : tactics)
        {
            ASSERT_EQ(runtime(*copy).setTactic(tactic), 0);
            ASSERT_EQ(enqueue(*copy, scanTensors(sizes), kWORKSPACE), 0);
            EXPECT_EQ(static_cast<int32_t>(launches().scanPlan.variant), tactic) << "N " << states;
        }
    }
    Listener listener;
    int32_t one{0};
    EXPECT_NE(build(*plugin).getValidTactics(&one, 77), 0);
    EXPECT_NE(runtime(*plugin).setTactic(-3), 0);
    EXPECT_NE(runtime(*plugin).setTactic(kSCAN_VARIANT_COUNT + 1), 0);
    EXPECT_NE(listener.text().find("none of this library's"), std::string::npos);
}

TEST_F(Runtime, ASetTacticSurvivesTheClone)
{
    auto const plugin = makeScan();
    ASSERT_EQ(runtime(*plugin).setTactic(static_cast<int32_t>(ScanVariant::kTHREAD_4)), 0);
    std::unique_ptr<IPluginV3> const copy(runtime(*plugin).attachToContext(nullptr));
    ASSERT_EQ(enqueue(*copy, scanTensors(), kWORKSPACE), 0);
    EXPECT_EQ(launches().scanPlan.variant, ScanVariant::kTHREAD_4);
}

TEST_F(Runtime, TheDefaultTacticLetsTheShapeDecide)
{
    for (int64_t const batch : {1, 64})
    {
        ScanSizes sizes;
        sizes.batch = batch;
        sizes.length = 197;
        sizes.channels = 384;
        ASSERT_EQ(enqueue(*makeScan(), scanTensors(sizes), kWORKSPACE), 0);
        EXPECT_EQ(launches().scanPlan.variant, planScan(launches().scanShape, smCount()).variant);
    }
}

TEST_F(Runtime, WorkspaceServesEverySmallerShapeOfTheProfile)
{
    ScanSizes largest;
    largest.batch = 64;
    largest.length = 6085;
    largest.channels = 384;
    auto const descs = scanTensors(largest).dynamic();
    auto const plugin = makeScan();
    size_t const bytes = build(*plugin).getWorkspaceSize(descs.data(), 7, descs.data() + 7, 1);
    for (int64_t const batch : {1, 2, 7, 63, 64})
    {
        for (int64_t const length : {1, 2, 197, 1025, 6084, 6085})
        {
            ScanSizes sizes = largest;
            sizes.batch = batch;
            sizes.length = length;
            ASSERT_EQ(enqueue(*plugin, scanTensors(sizes), kWORKSPACE), 0);
            for (int32_t variant = 1; variant <= kSCAN_VARIANT_COUNT; ++variant)
            {
                EXPECT_LE(scanWorkspaceSize(launches().scanShape, static_cast<ScanVariant>(variant), smCount()), bytes)
                    << "B " << batch << " L " << length << " variant " << variant;
            }
        }
    }
}

TEST_F(Runtime, ScanLaunchesWithEveryPointerAndSizeInItsPlace)
{
    ScanSizes sizes;
    sizes.sharedU = true;
    ASSERT_EQ(enqueue(*makeScan(), scanTensors(sizes), kWORKSPACE), 0);
    Launches const& record = launches();
    ASSERT_EQ(record.scans, 1);
    EXPECT_EQ(record.scanShape.batch, 2);
    EXPECT_EQ(record.scanShape.length, 17);
    EXPECT_EQ(record.scanShape.channels, 24);
    EXPECT_EQ(record.scanShape.states, 16);
    EXPECT_EQ(record.scanShape.rank, 3);
    EXPECT_EQ(record.scanShape.groups, 2);
    EXPECT_TRUE(record.scanShape.sharedU);
    EXPECT_FALSE(record.scanShape.sharedXDbl);
    EXPECT_TRUE(record.scanShape.gated);
    EXPECT_EQ(record.scanShape.directions[0], 1);
    EXPECT_EQ(record.scanShape.directions[1], -1);
    EXPECT_EQ(record.scanShape.scale, 0.5F);
    EXPECT_EQ(record.scanShape.type, DType::kFLOAT16);
    auto const at = [](void const* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
    EXPECT_EQ(at(record.scanPointers.u), 1U);
    EXPECT_EQ(at(record.scanPointers.xDbl), 2U);
    EXPECT_EQ(at(record.scanPointers.A), 3U);
    EXPECT_EQ(at(record.scanPointers.D), 4U);
    EXPECT_EQ(at(record.scanPointers.dtWeight), 5U);
    EXPECT_EQ(at(record.scanPointers.dtBias), 6U);
    EXPECT_EQ(at(record.scanPointers.z), 7U);
    EXPECT_EQ(at(record.scanPointers.y), 100U);
    EXPECT_EQ(record.workspace.data, kWORKSPACE);
    EXPECT_EQ(at(record.stream), 9U);
}

TEST_F(Runtime, WithoutAGateThereIsNoZ)
{
    Fields fields = scanFields({1, 1, -1, -1}, {0, 1, 0, 1}, 5, 1.0F);
    auto const plugin = create("SelectiveScanNoGate", fields);
    ScanSizes sizes;
    sizes.groups = 4;
    sizes.gated = false;
    sizes.sharedXDbl = true;
    sizes.length = 35;
    ASSERT_EQ(enqueue(*plugin, scanTensors(sizes, DataType::kBF16), kWORKSPACE), 0);
    Launches const& record = launches();
    EXPECT_FALSE(record.scanShape.gated);
    EXPECT_TRUE(record.scanShape.sharedXDbl);
    EXPECT_EQ(record.scanShape.height, 5);
    EXPECT_EQ(record.scanShape.columnMajor[1], 1);
    EXPECT_EQ(record.scanShape.columnMajor[2], 0);
    EXPECT_EQ(record.scanShape.type, DType::kBFLOAT16);
    EXPECT_EQ(record.scanPointers.z, nullptr);
}

TEST_F(Runtime, DeltaLaunchesWithEveryPointerAndSizeInItsPlace)
{
    for (bool const gated : {true, false})
    {
        launches() = {};
        Fields fields = deltaFields(0, 1);
        auto const plugin = create(gated ? "SelectiveScanDelta" : "SelectiveScanDeltaNoGate", fields);
        ScanSizes sizes;
        sizes.groups = 3;
        sizes.gated = gated;
        ASSERT_EQ(configure(*plugin, deltaTensors(sizes)), 0);
        EXPECT_GE(build(*plugin).getNbTactics(), 1);
        ASSERT_EQ(enqueue(*plugin, deltaTensors(sizes), kWORKSPACE), 0);
        Launches const& record = launches();
        ASSERT_EQ(record.scans, 1);
        EXPECT_TRUE(record.scanShape.givenDelta);
        EXPECT_FALSE(record.scanShape.deltaSoftplus);
        EXPECT_EQ(record.scanShape.directions[0], -1);
        EXPECT_EQ(record.scanShape.channelGroups, 3);
        EXPECT_EQ(record.scanShape.groups, 1);
        EXPECT_EQ(record.scanShape.rank, 0);
        EXPECT_EQ(record.scanShape.channels, 24);
        EXPECT_EQ(record.scanShape.gated, gated);
        auto const at = [](void const* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
        ScanPointers const& pointers = record.scanPointers;
        EXPECT_EQ(at(pointers.u), 1U);
        EXPECT_EQ(at(pointers.delta), 2U);
        EXPECT_EQ(at(pointers.A), 3U);
        EXPECT_EQ(at(pointers.B), 4U);
        EXPECT_EQ(at(pointers.C), 5U);
        EXPECT_EQ(at(pointers.D), 6U);
        EXPECT_EQ(at(pointers.dtBias), 7U);
        EXPECT_EQ(at(pointers.z), gated ? 8U : 0U);
        EXPECT_EQ(at(pointers.y), 100U);
    }
}

TEST_F(Runtime, GroupsOfChannelsThatDoNotDivideThemAreRefused)
{
    Listener listener;
    Fields fields = deltaFields();
    ScanSizes sizes;
    sizes.groups = 5;
    EXPECT_NE(configure(*create("SelectiveScanDelta", fields), deltaTensors(sizes)), 0);
    EXPECT_NE(listener.text().find("B has G = 5 groups, which do not divide E = 24 channels"), std::string::npos)
        << listener.text();
}

TEST_F(Runtime, ConvLaunchesWithEveryPointerAndSizeInItsPlace)
{
    Fields fields = convFields({-1, 1}, "none");
    auto const plugin = create("CausalConv1d", fields);
    ASSERT_EQ(configure(*plugin, convTensors(3, 7, 10, 3, 2, DataType::kFLOAT)), 0);
    EXPECT_EQ(build(*plugin).getNbTactics(), 0);
    ASSERT_EQ(enqueue(*plugin, convTensors(3, 7, 10, 3, 2, DataType::kFLOAT), nullptr), 0);
    Launches const& record = launches();
    ASSERT_EQ(record.convs, 1);
    EXPECT_EQ(record.convShape.batch, 3);
    EXPECT_EQ(record.convShape.length, 7);
    EXPECT_EQ(record.convShape.channels, 10);
    EXPECT_EQ(record.convShape.width, 3);
    EXPECT_EQ(record.convShape.groups, 2);
    EXPECT_EQ(record.convShape.directions[0], -1);
    EXPECT_FALSE(record.convShape.silu);
    EXPECT_EQ(record.convShape.type, DType::kFLOAT32);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(record.convPointers.bias), 3U);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(record.convPointers.u), 100U);
}

TEST_F(Runtime, AnEmptyBatchLaunchesNothing)
{
    ScanSizes sizes;
    sizes.batch = 0;
    auto const plugin = makeScan();
    EXPECT_EQ(configure(*plugin, scanTensors(sizes)), 0);
    EXPECT_EQ(enqueue(*plugin, scanTensors(sizes), nullptr), 0);
    EXPECT_EQ(launches().scans, 0);
}

TEST_F(Runtime, FailuresAreSaidAndReturned)
{
    Listener listener;
    launches().answer = cudaErrorInvalidValue;
    auto const plugin = makeScan();
    EXPECT_NE(enqueue(*plugin, scanTensors(), kWORKSPACE), 0);
    EXPECT_NE(
        listener.text().find("vimdeploy SelectiveScan (/layer/7), enqueue: the launch of variant"), std::string::npos)
        << listener.text();
    EXPECT_NE(listener.text().find("B = 2, L = 17, E = 24: invalid argument"), std::string::npos) << listener.text();
    listener.clear();
    Fields fields = convFields();
    EXPECT_NE(enqueue(*create("CausalConv1d", fields), convTensors(), nullptr), 0);
    EXPECT_NE(listener.text().find("the launch failed at B = 2"), std::string::npos) << listener.text();

    launches() = {};
    listener.clear();
    auto const descs = scanTensors().fixed();
    EXPECT_NE(runtime(*plugin).enqueue(descs.data(), descs.data() + 7, nullptr, nullptr, nullptr, nullptr), 0);
    EXPECT_EQ(launches().scans, 0);
}

TEST_F(Runtime, ShapeChangeChecksWhatEnqueueWillSee)
{
    Listener listener;
    auto const plugin = makeScan();
    auto descs = scanTensors().fixed();
    EXPECT_EQ(runtime(*plugin).onShapeChange(descs.data(), 7, descs.data() + 7, 1), 0);
    EXPECT_EQ(listener.text(), "");
    descs[3].dims.d[1] = 5;
    EXPECT_NE(runtime(*plugin).onShapeChange(descs.data(), 7, descs.data() + 7, 1), 0);
    EXPECT_NE(listener.text().find("onShapeChange: D has E = 5 (axis 1), but u has 24"), std::string::npos)
        << listener.text();
    descs = scanTensors().fixed();
    descs[0].dims.d[2] = -1;
    EXPECT_NE(runtime(*plugin).onShapeChange(descs.data(), 7, descs.data() + 7, 1), 0);
    EXPECT_NE(listener.text().find("u has no extent on axis 2"), std::string::npos) << listener.text();
}
