//! \file creator.h
//! The creator of a plugin: what a registry lists, and where a field collection becomes a plugin.
#pragma once

#include "fields.h"
#include "logging.h"
#include "op_plugin.h"

#include <NvInferRuntime.h>

#include <vector>

namespace vimdeploy
{

//! \tparam Plugin has static spec(), static fields() and a constructor (FieldReader const&, Origin const&, char const* layer).
template <typename Plugin>
class OpCreator : public nvinfer1::IPluginCreatorV3One
{
public:
    OpCreator()
        : mFieldNames(describeFields(Plugin::fields()))
    {
        mCollection.nbFields = static_cast<int32_t>(mFieldNames.size());
        mCollection.fields = mFieldNames.data();
    }

    //! The build phase gives the node's attributes, the runtime phase what getFieldsToSerialize() wrote: the same
    //! attributes, read and checked by the same code, and where the plan comes from.
    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fc,
        nvinfer1::TensorRTPhase phase) noexcept override
    {
        return guarded(Plugin::spec().name, name, "createPlugin", static_cast<nvinfer1::IPluginV3*>(nullptr),
            [&]() -> nvinfer1::IPluginV3*
            {
                if (phase == nvinfer1::TensorRTPhase::kBUILD)
                {
                    return new Plugin(FieldReader(fc, Plugin::fields()), Origin::here(), name);
                }
                std::vector<FieldSpec> specs = Plugin::fields();
                specs.insert(specs.end(), Origin::fields().begin(), Origin::fields().end());
                FieldReader const reader(fc, specs);
                return new Plugin(reader, Origin::read(reader), name);
            });
    }

    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &mCollection;
    }

    nvinfer1::AsciiChar const* getPluginName() const noexcept override
    {
        return Plugin::spec().name;
    }

    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override
    {
        return kPLUGIN_VERSION;
    }

    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override
    {
        return kPLUGIN_NAMESPACE;
    }

private:
    std::vector<nvinfer1::PluginField> mFieldNames;
    nvinfer1::PluginFieldCollection mCollection{};
};

} // namespace vimdeploy
