//! \file selective_scan_plugin.h
//! SelectiveScan and SelectiveScanNoGate as TensorRT plugins.
#pragma once

#include "scan_plugin.h"

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace vimdeploy
{

//! G selective scans over the same tokens, summed, gated (or not) and scaled; delta is projected inside.
class ProjectedScanPlugin : public ScanPlugin
{
public:
    //! The attributes of both ops.
    static std::vector<FieldSpec> const& fields();

protected:
    ProjectedScanPlugin(
        OpSpec const& spec, bool isGated, FieldReader const& reader, Origin const& origin, char const* layer);

    int32_t nbGroups() const noexcept override;
    std::vector<DimLimit> const& limits() const noexcept override;
    void checkAttributes(Symbols const& symbols) const override;
    void writeFields(FieldWriter& writer) const override;
    std::string describeAttributes() const override;
    void describe(Symbols const& symbols, ScanShape& shape) const override;
    void point(void const* const* inputs, ScanPointers& pointers) const override;
    std::vector<Dim> const& letters() const noexcept override;

private:
    std::vector<int32_t> mDirections;
    std::vector<int32_t> mColumnMajor;
    int32_t mHeight{0};
    float mScale{1.0F};
};

class SelectiveScanPlugin : public ProjectedScanPlugin
{
public:
    static OpSpec const& spec();
    SelectiveScanPlugin(FieldReader const& reader, Origin const& origin, char const* layer);

protected:
    std::unique_ptr<OpPlugin> copy() const override;
};

//! y is float32 whatever T is: VMamba norms it next.
class SelectiveScanNoGatePlugin : public ProjectedScanPlugin
{
public:
    static OpSpec const& spec();
    SelectiveScanNoGatePlugin(FieldReader const& reader, Origin const& origin, char const* layer);

protected:
    std::unique_ptr<OpPlugin> copy() const override;
};

} // namespace vimdeploy
