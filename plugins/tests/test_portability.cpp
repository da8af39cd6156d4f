//! A plan that leaves the machine it was built on: another number of multiprocessors, another build of this library.

#include "doubles.h"
#include "support.h"

#include <gtest/gtest.h>

#include <algorithm>

using namespace vimdeploy;
using namespace vimdeploy::test;
using nvinfer1::TensorRTPhase;

namespace
{

void* const kWORKSPACE{reinterpret_cast<void*>(uintptr_t{4096})};

//! Multiprocessors of pairs that TensorRT lets share a plan: L4 and RTX 4090, A30 and A100, A100 and a MIG slice of it,
//! and what no product has.
constexpr int32_t kL4{58};
constexpr int32_t kRTX_4090{128};

class Portability : public ::testing::Test
{
protected:
    void SetUp() override
    {
        launches() = {};
        device() = {};
    }

    void TearDown() override
    {
        device() = {};
    }

    //! What a plan of these largest sizes holds, built on a GPU of \p multiprocessors: fields and bytes of workspace.
    struct Plan
    {
        Fields fields;
        size_t workspace;
    };

    Plan buildOn(int32_t multiprocessors, ScanSizes const& largest)
    {
        device().multiprocessors = multiprocessors;
        Fields fields = scanFields();
        auto const plugin = create("SelectiveScan", fields);
        auto const descs = scanTensors(largest).dynamic();
        EXPECT_EQ(configure(*plugin, scanTensors(largest)), 0);
        return {planOf(*plugin), build(*plugin).getWorkspaceSize(descs.data(), 7, descs.data() + 7, 1)};
    }

    //! Runs every variant of \p sizes on a GPU of \p multiprocessors and expects it inside the plan's workspace.
    void expectFits(Plan& plan, int32_t multiprocessors, ScanSizes const& sizes)
    {
        device().multiprocessors = multiprocessors;
        auto const plugin = create("SelectiveScan", plan.fields, TensorRTPhase::kRUNTIME);
        ASSERT_NE(plugin, nullptr);
        for (int32_t tactic = 0; tactic <= kSCAN_VARIANT_COUNT; ++tactic)
        {
            ASSERT_EQ(runtime(*plugin).setTactic(tactic), 0);
            ASSERT_EQ(enqueue(*plugin, scanTensors(sizes), kWORKSPACE), 0);
            Launches const& record = launches();
            EXPECT_LE(planWorkspaceSize(record.scanShape, record.scanPlan), plan.workspace)
                << "tactic " << tactic << ", " << multiprocessors << " multiprocessors, B " << sizes.batch << ", L "
                << sizes.length << ", " << record.scanPlan.chunks << " chunks";
        }
    }
};

ScanSizes vimTiny(int64_t batch, int64_t length)
{
    ScanSizes sizes;
    sizes.batch = batch;
    sizes.length = length;
    sizes.channels = 384;
    sizes.rank = 12;
    return sizes;
}

} // namespace

TEST_F(Portability, APlanOfASmallGpuKeepsToItsWorkspaceOnALargeOne)
{
    ScanSizes const sizes = vimTiny(1, 6085);
    Plan plan = buildOn(kL4, sizes);
    expectFits(plan, kRTX_4090, sizes);
    // And this is no easy case: planned for the GPU at hand it would write past the end.
    EXPECT_GT(planWorkspaceSize(
                  launches().scanShape, planScanVariant(launches().scanShape, ScanVariant::kCHUNKED, kRTX_4090)),
        plan.workspace);
}

TEST_F(Portability, EveryPairOfGpusAndEveryShapeOfTheProfile)
{
    for (int32_t const builtOn : {1, 14, 20, 56, 58, 80, 108, 132, 170, 256})
    {
        for (int64_t const channels : {192, 384, 1536})
        {
            ScanSizes largest = vimTiny(8, 6085);
            largest.channels = channels;
            Plan plan = buildOn(builtOn, largest);
            for (int32_t const runOn : {1, 7, 58, 82, 132, 256})
            {
                for (int64_t const batch : {1, 3, 8})
                {
                    for (int64_t const length : {197, 2049, 6085})
                    {
                        ScanSizes sizes = largest;
                        sizes.batch = batch;
                        sizes.length = length;
                        expectFits(plan, runOn, sizes);
                    }
                }
            }
        }
    }
}

TEST_F(Portability, ASmallerGpuIsPlannedForWhatItIs)
{
    ScanSizes const sizes = vimTiny(1, 6085);
    Plan plan = buildOn(kRTX_4090, sizes);
    expectFits(plan, kL4, sizes);
    EXPECT_EQ(launches().scanPlan.chunks, planScanVariant(launches().scanShape, ScanVariant::kCHUNKED, kL4).chunks);
}

TEST_F(Portability, ALaunchRefusesAWorkspaceThatIsTooSmallByNameAndNumbers)
{
    ScanShape shape;
    shape.length = 6085;
    shape.channels = 384;
    shape.groups = 2;
    shape.directions[1] = -1;
    shape.type = DType::kFLOAT16;
    ScanPlan const plan = planScanVariant(shape, ScanVariant::kCHUNKED, kRTX_4090);
    auto* const some = reinterpret_cast<void*>(uintptr_t{256});
    auto* const floats = static_cast<float*>(some);
    ScanPointers pointers;
    pointers.u = pointers.xDbl = pointers.dtWeight = pointers.z = some;
    pointers.A = pointers.D = pointers.dtBias = floats;
    pointers.y = some;
    size_t const needed = planWorkspaceSize(shape, plan);
    EXPECT_TRUE(launchScan(shape, plan, pointers, {some, needed}, nullptr).ok());
    for (Workspace const& workspace : {Workspace{some, needed - 1}, Workspace{nullptr, needed}, Workspace{}})
    {
        LaunchStatus const status = launchScan(shape, plan, pointers, workspace, nullptr);
        EXPECT_FALSE(status.ok());
        std::string const given = std::to_string(workspace.data == nullptr ? 0 : workspace.bytes);
        std::string const words = "the workspace has " + given + " bytes; variant 6 with " + std::to_string(plan.chunks)
            + " chunks needs " + std::to_string(needed);
        EXPECT_EQ(status.refusal, words);
    }
}

TEST_F(Portability, APlanOfOtherKernelSourcesIsRefusedInWords)
{
    for (std::string const op : {"SelectiveScan", "CausalConv1d", "SelectiveScanDelta"})
    {
        Fields fields = fieldsOf(op);
        Fields plan = planOf(*create(op, fields));
        EXPECT_NE(create(op, plan, TensorRTPhase::kRUNTIME), nullptr);
        Listener listener;
        Fields other = plan;
        other.drop("kernels").text("kernels", "0123456789ab");
        EXPECT_EQ(create(op, other, TensorRTPhase::kRUNTIME), nullptr);
        EXPECT_NE(listener.text().find("createPlugin: the plan was built with other kernels (0123456789ab) than this "
                                       "library has ("),
            std::string::npos)
            << listener.text();
        listener.clear();
        for (char const* const name : {"kernels", "sm_count"})
        {
            Fields older = plan;
            older.drop(name);
            EXPECT_EQ(create(op, older, TensorRTPhase::kRUNTIME), nullptr);
            EXPECT_NE(listener.text().find("an older library wrote it"), std::string::npos) << listener.text();
        }
        listener.clear();
        Fields odd = plan;
        odd.drop("sm_count").ints("sm_count", {0});
        EXPECT_EQ(create(op, odd, TensorRTPhase::kRUNTIME), nullptr);
        EXPECT_NE(listener.text().find("a GPU of 0 multiprocessors"), std::string::npos) << listener.text();
        // A node is no plan: there the same fields are as unknown as any other.
        EXPECT_EQ(create(op, plan, TensorRTPhase::kBUILD), nullptr);
        EXPECT_NE(listener.text().find("unknown attribute 'sm_count'"), std::string::npos) << listener.text();
    }
}

TEST_F(Portability, TilesFillTheTensorCoresWhereverFourBlocksFit)
{
    struct Case
    {
        int32_t channels;
        int32_t rank;
        int32_t sharedKib; //!< of an SM: H100, A100, RTX 4090
        int32_t tile;
    };
    for (Case const& test : {Case{384, 12, 228, 16}, {768, 24, 228, 16}, {1536, 48, 228, 16}, {384, 12, 164, 16},
             {768, 24, 164, 16}, {1536, 48, 164, 8}, {384, 12, 100, 16}, {768, 24, 100, 8}, {1536, 48, 100, 8}})
    {
        ScanShape shape;
        shape.batch = 64;
        shape.length = 197;
        shape.channels = test.channels;
        shape.rank = test.rank;
        shape.groups = 2;
        shape.directions[1] = -1;
        shape.type = DType::kFLOAT16;
        ScanPlan const plan = planScanVariant(shape, ScanVariant::kTHREAD_16, ScanDevice{132, test.sharedKib * 1024});
        EXPECT_EQ(plan.tileLength, test.tile)
            << "E " << test.channels << ", " << test.sharedKib << " KiB, " << plan.sharedBytes << " bytes a block";
        EXPECT_LE(plan.sharedBytes, static_cast<int64_t>(kMAX_SHARED_BYTES));
    }
}
