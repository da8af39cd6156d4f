//! \file selective_scan_delta_plugin.h
//! SelectiveScanDelta and SelectiveScanDeltaNoGate as TensorRT plugins.
#pragma once

#include "scan_plugin.h"

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace vimdeploy
{

//! One scan whose delta is given and whose channels are partitioned into groups, each with B and C of its own.
class DeltaScanPlugin : public ScanPlugin
{
public:
    //! The attributes of both ops.
    static std::vector<FieldSpec> const& fields();

protected:
    DeltaScanPlugin(
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
    int32_t mDeltaSoftplus{1};
    int32_t mReverse{0};
};

class SelectiveScanDeltaPlugin : public DeltaScanPlugin
{
public:
    static OpSpec const& spec();
    SelectiveScanDeltaPlugin(FieldReader const& reader, Origin const& origin, char const* layer);

protected:
    std::unique_ptr<OpPlugin> copy() const override;
};

//! y is float32 whatever T is.
class SelectiveScanDeltaNoGatePlugin : public DeltaScanPlugin
{
public:
    static OpSpec const& spec();
    SelectiveScanDeltaNoGatePlugin(FieldReader const& reader, Origin const& origin, char const* layer);

protected:
    std::unique_ptr<OpPlugin> copy() const override;
};

} // namespace vimdeploy
