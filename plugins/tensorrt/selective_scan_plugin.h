//! \file selective_scan_plugin.h
//! SelectiveScan and SelectiveScanNoGate as TensorRT plugins.
#pragma once

#include "kernels/selective_scan/launch.h"
#include "op_plugin.h"

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace vimdeploy
{

//! G selective scans over the same tokens, summed, gated (or not) and scaled; one launch, or two over chunks of L.
class ScanPlugin : public OpPlugin
{
public:
    //! The attributes of both ops.
    static std::vector<FieldSpec> const& fields();

protected:
    ScanPlugin(OpSpec const& spec, bool isGated, FieldReader const& reader, Origin const& origin, char const* layer);

    int32_t nbGroups() const noexcept override;
    std::vector<DimLimit> const& limits() const noexcept override;
    void checkAttributes(Symbols const& symbols) const override;
    void writeFields(FieldWriter& writer) const override;
    std::string describeAttributes() const override;
    std::vector<int32_t> tacticsFor(Symbols const& symbols, nvinfer1::DataType type) const override;
    bool isTactic(int32_t tactic) const noexcept override;
    size_t workspaceFor(Symbols const& symbols, nvinfer1::DataType type) const override;
    void launch(Symbols const& symbols, nvinfer1::DataType type, LaunchArguments const& arguments) const override;

private:
    //! \throws PluginError if a dimension is unknown or the kernels refuse the shape.
    ScanShape shapeOf(Symbols const& symbols, nvinfer1::DataType type) const;

    std::vector<int32_t> mDirections;
    std::vector<int32_t> mColumnMajor;
    int32_t mHeight{0};
    float mScale{1.0F};
    bool mIsGated{true};
};

class SelectiveScanPlugin : public ScanPlugin
{
public:
    static OpSpec const& spec();
    SelectiveScanPlugin(FieldReader const& reader, Origin const& origin, char const* layer);

protected:
    std::unique_ptr<OpPlugin> copy() const override;
};

//! y is float32 whatever T is: VMamba norms it next.
class SelectiveScanNoGatePlugin : public ScanPlugin
{
public:
    static OpSpec const& spec();
    SelectiveScanNoGatePlugin(FieldReader const& reader, Origin const& origin, char const* layer);

protected:
    std::unique_ptr<OpPlugin> copy() const override;
};

} // namespace vimdeploy
