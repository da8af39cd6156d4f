//! \file scan_plugin.h
//! What the plugins of the scan kernel share: variants as tactics, workspace, the launch. An op says its shape and where
//! its tensors are.
#pragma once

#include "kernels/selective_scan/launch.h"
#include "op_plugin.h"

#include <NvInferRuntime.h>

#include <vector>

namespace vimdeploy
{

class ScanPlugin : public OpPlugin
{
protected:
    ScanPlugin(OpSpec const& spec, bool isGated, Origin const& origin, char const* layer);

    bool isTactic(int32_t tactic) const noexcept override;
    std::vector<int32_t> tacticsFor(Symbols const& symbols, nvinfer1::DataType type) const override;
    size_t workspaceFor(Symbols const& symbols, nvinfer1::DataType type) const override;
    void launch(Symbols const& symbols, nvinfer1::DataType type, LaunchArguments const& arguments) const override;

    //! Adds what only the op knows: groups, directions, ranks.
    virtual void describe(Symbols const& symbols, ScanShape& shape) const = 0;

    //! Where the op's inputs are; y is set already.
    virtual void point(void const* const* inputs, ScanPointers& pointers) const = 0;

    //! The letters that a shape needs.
    virtual std::vector<Dim> const& letters() const noexcept = 0;

    bool isGated() const noexcept
    {
        return mIsGated;
    }

private:
    //! \throws PluginError if a dimension is unknown or the kernels refuse the shape.
    ScanShape shapeOf(Symbols const& symbols, nvinfer1::DataType type) const;

    bool mIsGated;
};

//! What the tensors of every scan have in common: z, where there is a gate, and y.
TensorSpec gateSpec();
TensorSpec scanOutputSpec(bool isGated);

} // namespace vimdeploy
