//! \file causal_conv1d_plugin.h
//! CausalConv1d as a TensorRT plugin.
#pragma once

#include "kernels/causal_conv1d/launch.h"
#include "op_plugin.h"

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace vimdeploy
{

//! A depthwise convolution over tokens in G directions at once, one launch.
class CausalConv1dPlugin : public OpPlugin
{
public:
    static OpSpec const& spec();
    static std::vector<FieldSpec> const& fields();

    CausalConv1dPlugin(FieldReader const& reader, Origin const& origin, char const* layer);

protected:
    std::unique_ptr<OpPlugin> copy() const override;
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
    //! \throws PluginError if a dimension is unknown or the kernel refuses the shape.
    ConvShape shapeOf(Symbols const& symbols, nvinfer1::DataType type) const;

    std::vector<int32_t> mDirections;
    std::string mActivation;
};

} // namespace vimdeploy
