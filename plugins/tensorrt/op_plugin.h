//! \file op_plugin.h
//! What the plugins have in common: everything that TensorRT asks and that the table of tensors (descriptors.h) answers.
//!
//! One object implements all three capabilities. TensorRT clones it freely (once per build phase, profile and execution
//! context), so every member is a value and copying is all that clone() does. An op adds its attributes, its limits and
//! its kernels through the protected virtual methods; those may throw, the overrides of TensorRT's interfaces may not.
#pragma once

#include "descriptors.h"
#include "fields.h"
#include "origin.h"

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace vimdeploy
{

inline constexpr char const* kPLUGIN_VERSION{"1"};
inline constexpr char const* kPLUGIN_NAMESPACE{"vimdeploy"};

//! Pointers and stream of one enqueue().
struct LaunchArguments
{
    void const* const* inputs;
    void* const* outputs;
    void* workspace;
    cudaStream_t stream;
    int32_t tactic; //!< 0 lets the op choose by shape
};

class OpPlugin
    : public nvinfer1::IPluginV3
    , public nvinfer1::IPluginV3OneCore
    , public nvinfer1::IPluginV3OneBuild
    , public nvinfer1::IPluginV3OneRuntime
{
public:
    //! \param layer the layer's name, for messages only; may be null.
    OpPlugin(OpSpec const& spec, Origin const& origin, char const* layer);
    ~OpPlugin() override = default;

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
        int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
        int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t nbOutputs) const noexcept override;
    int32_t getNbTactics() noexcept override;
    int32_t getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept override;
    char const* getTimingCacheID() noexcept override;
    char const* getMetadataString() noexcept override;

    // IPluginV3OneRuntime
    int32_t setTactic(int32_t tactic) noexcept override;
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
        int32_t nbOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

protected:
    OpPlugin(OpPlugin const&) = default;
    OpPlugin& operator=(OpPlugin const&) = delete;

    Origin const& origin() const noexcept
    {
        return mOrigin;
    }

    //! A copy of the whole object.
    virtual std::unique_ptr<OpPlugin> copy() const = 0;

    virtual int32_t nbGroups() const noexcept = 0;

    virtual std::vector<DimLimit> const& limits() const noexcept = 0;

    //! Checks between dimensions and attributes that the table of tensors cannot express.
    virtual void checkAttributes(Symbols const& symbols) const = 0;

    virtual void writeFields(FieldWriter& writer) const = 0;

    //! The attributes in words, short and without spaces ("directions=1,-1;...").
    virtual std::string describeAttributes() const = 0;

    //! The kernel variants that can serve a shape, as tactics: unique and non-zero, best guess first.
    virtual std::vector<int32_t> tacticsFor(Symbols const& symbols, nvinfer1::DataType type) const = 0;

    //! Whether tacticsFor() could ever list \p tactic.
    virtual bool isTactic(int32_t tactic) const noexcept = 0;

    //! Bytes of workspace that are enough for this shape and every smaller one, whatever the tactic, and whichever GPU
    //! launch() runs on.
    virtual size_t workspaceFor(Symbols const& symbols, nvinfer1::DataType type) const = 0;

    //! Launches the kernels on the stream: no allocation, no synchronisation, no other stream.
    //! \throws PluginError if a launch fails.
    virtual void launch(Symbols const& symbols, nvinfer1::DataType type, LaunchArguments const& arguments) const = 0;

private:
    //! Binds and checks one set of shapes, the output's last.
    Symbols symbolsOf(nvinfer1::Dims const* const* dims) const;

    //! As above for shapes of execution time, where nothing may be unknown.
    Symbols symbolsOf(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out) const;

    //! As above for one corner (min, opt or max) of a profile.
    Symbols symbolsOf(nvinfer1::DynamicPluginTensorDesc const* in, nvinfer1::DynamicPluginTensorDesc const* out,
        nvinfer1::Dims nvinfer1::DynamicPluginTensorDesc::* corner) const;

    void checkDescriptors(
        nvinfer1::DynamicPluginTensorDesc const* in, nvinfer1::DynamicPluginTensorDesc const* out) const;

    OpSpec const* mSpec; //!< a constant of the library, not owned
    Origin mOrigin;
    std::string mLayer;
    std::vector<int32_t> mTactics; //!< for the profile and formats of the last configurePlugin()
    int32_t mTactic{0};
    std::string mTimingCacheId;
    std::string mMetadata;
    FieldWriter mFields;
};

} // namespace vimdeploy
