#include "scan_plugin.h"

#include "attributes.h"
#include "cuda_runtime.h"
#include "logging.h"

#include <algorithm>
#include <array>

namespace vimdeploy
{

using nvinfer1::DataType;

TensorSpec gateSpec()
{
    return {"z", false, {Dim::kB, Dim::kL, Dim::kE}};
}

TensorSpec scanOutputSpec(bool isGated)
{
    return {"y", !isGated, {Dim::kB, Dim::kL, Dim::kE}};
}

ScanPlugin::ScanPlugin(OpSpec const& spec, bool isGated, Origin const& origin, char const* layer)
    : OpPlugin(spec, origin, layer)
    , mIsGated(isGated)
{
}

ScanShape ScanPlugin::shapeOf(Symbols const& symbols, DataType type) const
{
    for (Dim const dim : letters())
    {
        if (symbols[dim] == kUNKNOWN)
        {
            refuse("%s is not known", toString(dim));
        }
    }
    ScanShape shape;
    // A profile may start at an empty batch; plans and workspace are those of one image.
    shape.batch = std::max<int64_t>(symbols[Dim::kB], 1);
    shape.length = symbols[Dim::kL];
    shape.channels = static_cast<int32_t>(symbols[Dim::kE]);
    shape.states = static_cast<int32_t>(symbols[Dim::kN]);
    shape.gated = mIsGated;
    shape.type = toDType(type);
    describe(symbols, shape);
    char message[kMESSAGE_SIZE];
    if (char const* const problem = checkScanShape(shape, message, sizeof(message)))
    {
        refuse("%s", problem);
    }
    return shape;
}

std::vector<int32_t> ScanPlugin::tacticsFor(Symbols const& symbols, DataType type) const
{
    ScanShape const shape = shapeOf(symbols, type);
    ScanDevice const device{origin().builtFor(), sharedPerSm()};
    std::array<ScanVariant, kSCAN_VARIANT_COUNT> variants{};
    int32_t const count = scanVariants(shape, variants.data());
    std::vector<int32_t> tactics;
    for (int32_t i = 0; i < count; ++i)
    {
        ScanVariant const variant = variants[static_cast<size_t>(i)];
        if (planScanVariant(shape, variant, device).variant != ScanVariant::kNONE)
        {
            tactics.push_back(static_cast<int32_t>(variant));
        }
    }
    return tactics;
}

bool ScanPlugin::isTactic(int32_t tactic) const noexcept
{
    return tactic >= 1 && tactic <= kSCAN_VARIANT_COUNT;
}

size_t ScanPlugin::workspaceFor(Symbols const& symbols, DataType type) const
{
    // TensorRT asks before it sets a tactic, and a smaller shape may choose another variant than the largest one.
    ScanShape const shape = shapeOf(symbols, type);
    size_t bytes{0};
    for (int32_t variant = 1; variant <= kSCAN_VARIANT_COUNT; ++variant)
    {
        bytes = std::max(bytes, scanWorkspaceSize(shape, static_cast<ScanVariant>(variant), origin().builtFor()));
    }
    return bytes;
}

void ScanPlugin::launch(Symbols const& symbols, DataType type, LaunchArguments const& arguments) const
{
    ScanShape const shape = shapeOf(symbols, type);
    ScanDevice const device{origin().multiprocessors(), sharedPerSm()};
    ScanPlan plan;
    if (arguments.tactic != 0)
    {
        plan = planScanVariant(shape, static_cast<ScanVariant>(arguments.tactic), device);
    }
    if (plan.variant == ScanVariant::kNONE)
    {
        plan = planScan(shape, device);
    }
    ScanPointers pointers;
    pointers.y = arguments.outputs[0];
    point(arguments.inputs, pointers);
    // TensorRT does not say how much it gave, only that it is what getWorkspaceSize() asked for.
    Workspace const workspace{arguments.workspace, scanWorkspaceSize(shape, plan.variant, origin().builtFor())};
    LaunchStatus const status = launchScan(shape, plan, pointers, workspace, arguments.stream);
    if (!status.ok())
    {
        refuse("the launch of variant %d failed at B = %lld, L = %lld, E = %d: %s", static_cast<int32_t>(plan.variant),
            static_cast<long long>(shape.batch), static_cast<long long>(shape.length), shape.channels, textOf(status));
    }
}

} // namespace vimdeploy
