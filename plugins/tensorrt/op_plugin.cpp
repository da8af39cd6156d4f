#include "op_plugin.h"

#include "logging.h"
#include "version.h"

#include <algorithm>
#include <array>
#include <utility>

namespace vimdeploy
{
namespace
{

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kOK{0};
constexpr int32_t kERROR{-1};

//! More tensors than any op of ours has.
constexpr size_t kMAX_TENSORS{10};

//! The expression of letter \p dim: a constant one if any input has it so, because a weight knows what an activation may
//! leave symbolic.
nvinfer1::IDimensionExpr const* expressionOf(OpSpec const& spec, DimsExprs const* inputs, Dim dim)
{
    nvinfer1::IDimensionExpr const* found{nullptr};
    for (size_t i = 0; i < spec.inputs.size(); ++i)
    {
        for (size_t axis = 0; axis < spec.inputs[i].dims.size(); ++axis)
        {
            if (spec.inputs[i].dims[axis] != dim)
            {
                continue;
            }
            nvinfer1::IDimensionExpr const* const candidate = inputs[i].d[axis];
            if (found == nullptr || candidate->isConstant())
            {
                found = candidate;
            }
            if (found->isConstant())
            {
                return found;
            }
        }
    }
    return found;
}

} // namespace

OpPlugin::OpPlugin(OpSpec const& spec, Origin const& origin, char const* layer)
    : mSpec(&spec)
    , mOrigin(origin)
    , mLayer(layer == nullptr ? "" : layer)
{
}

nvinfer1::IPluginCapability* OpPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* OpPlugin::clone() noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "clone", static_cast<nvinfer1::IPluginV3*>(nullptr),
        [&] { return copy().release(); });
}

nvinfer1::AsciiChar const* OpPlugin::getPluginName() const noexcept
{
    return mSpec->name;
}

nvinfer1::AsciiChar const* OpPlugin::getPluginVersion() const noexcept
{
    return kPLUGIN_VERSION;
}

nvinfer1::AsciiChar const* OpPlugin::getPluginNamespace() const noexcept
{
    return kPLUGIN_NAMESPACE;
}

Symbols OpPlugin::symbolsOf(Dims const* const* dims) const
{
    Symbols symbols(nbGroups());
    symbols.bindAll(*mSpec, dims, mSpec->inputs.size() + 1);
    symbols.checkLimits(limits());
    checkAttributes(symbols);
    return symbols;
}

Symbols OpPlugin::symbolsOf(PluginTensorDesc const* in, PluginTensorDesc const* out) const
{
    std::array<Dims const*, kMAX_TENSORS> dims{};
    size_t const nbInputs = mSpec->inputs.size();
    for (size_t i = 0; i <= nbInputs; ++i)
    {
        PluginTensorDesc const& desc = i < nbInputs ? in[i] : *out;
        TensorSpec const& tensor = i < nbInputs ? mSpec->inputs[i] : mSpec->output;
        dims[i] = &desc.dims;
        for (int32_t axis = 0; axis < std::min(desc.dims.nbDims, Dims::MAX_DIMS); ++axis)
        {
            if (desc.dims.d[axis] == kUNKNOWN)
            {
                refuse("%s has no extent on axis %d", tensor.name, axis);
            }
        }
    }
    return symbolsOf(dims.data());
}

Symbols OpPlugin::symbolsOf(
    DynamicPluginTensorDesc const* in, DynamicPluginTensorDesc const* out, Dims DynamicPluginTensorDesc::* corner) const
{
    std::array<Dims const*, kMAX_TENSORS> dims{};
    size_t const nbInputs = mSpec->inputs.size();
    for (size_t i = 0; i <= nbInputs; ++i)
    {
        DynamicPluginTensorDesc const& desc = i < nbInputs ? in[i] : *out;
        // A static network leaves the corners of some tensors empty.
        dims[i] = (desc.*corner).nbDims > 0 ? &(desc.*corner) : &desc.desc.dims;
    }
    return symbolsOf(dims.data());
}

void OpPlugin::checkDescriptors(DynamicPluginTensorDesc const* in, DynamicPluginTensorDesc const* out) const
{
    std::array<DataType, kMAX_TENSORS> types{};
    size_t const nbInputs = mSpec->inputs.size();
    for (size_t i = 0; i <= nbInputs; ++i)
    {
        PluginTensorDesc const& desc = i < nbInputs ? in[i].desc : out->desc;
        if (desc.format != nvinfer1::TensorFormat::kLINEAR)
        {
            refuse("%s has tensor format %d, expected LINEAR", (i < nbInputs ? mSpec->inputs[i] : mSpec->output).name,
                static_cast<int32_t>(desc.format));
        }
        types[i] = desc.type;
    }
    checkTypes(*mSpec, types.data());
    DataType const wanted = mSpec->output.isFloat32 ? DataType::kFLOAT : types[0];
    if (out->desc.type != wanted)
    {
        refuse("%s is %s, expected %s", mSpec->output.name, toString(out->desc.type), toString(wanted));
    }
}

int32_t OpPlugin::configurePlugin(
    DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "configurePlugin", kERROR,
        [&]
        {
            checkCounts(*mSpec, in, nbInputs, out, nbOutputs);
            checkDescriptors(in, out);
            DataType const type = in[0].desc.type;
            // One tactic serves a whole profile, so it has to be valid at every corner of it.
            std::vector<int32_t> tactics = tacticsFor(symbolsOf(in, out, &DynamicPluginTensorDesc::opt), type);
            for (auto const corner : {&DynamicPluginTensorDesc::min, &DynamicPluginTensorDesc::max})
            {
                std::vector<int32_t> const valid = tacticsFor(symbolsOf(in, out, corner), type);
                auto const isGone
                    = [&](int32_t tactic) { return std::find(valid.begin(), valid.end(), tactic) == valid.end(); };
                tactics.erase(std::remove_if(tactics.begin(), tactics.end(), isGone), tactics.end());
            }
            mTactics = std::move(tactics);
            return kOK;
        });
}

int32_t OpPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "getOutputDataTypes", kERROR,
        [&]
        {
            checkCounts(*mSpec, inputTypes, nbInputs, outputTypes, nbOutputs);
            checkTypes(*mSpec, inputTypes);
            outputTypes[0] = mSpec->output.isFloat32 ? DataType::kFLOAT : inputTypes[0];
            return kOK;
        });
}

int32_t OpPlugin::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const* /* shapeInputs */,
    int32_t nbShapeInputs, DimsExprs* outputs, int32_t nbOutputs, nvinfer1::IExprBuilder& exprBuilder) noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "getOutputShapes", kERROR,
        [&]
        {
            checkCounts(*mSpec, inputs, nbInputs, outputs, nbOutputs);
            if (nbShapeInputs != 0)
            {
                refuse("%d shape inputs, expected none", nbShapeInputs);
            }
            Symbols symbols(nbGroups());
            for (size_t i = 0; i < mSpec->inputs.size(); ++i)
            {
                std::array<int64_t, Dims::MAX_DIMS> known{};
                known.fill(kUNKNOWN);
                for (int32_t axis = 0; axis < std::min(inputs[i].nbDims, Dims::MAX_DIMS); ++axis)
                {
                    nvinfer1::IDimensionExpr const* const expr = inputs[i].d[axis];
                    if (expr == nullptr)
                    {
                        refuse("%s has no expression for axis %d", mSpec->inputs[i].name, axis);
                    }
                    known[static_cast<size_t>(axis)] = expr->isConstant() ? expr->getConstantValue() : kUNKNOWN;
                }
                symbols.bind(mSpec->inputs[i], inputs[i].nbDims, known.data());
            }
            symbols.checkLimits(limits());
            checkAttributes(symbols);

            std::vector<Dim> const& letters = mSpec->output.dims;
            outputs[0].nbDims = static_cast<int32_t>(letters.size());
            for (size_t axis = 0; axis < letters.size(); ++axis)
            {
                outputs[0].d[axis] = letters[axis] == Dim::kG ? exprBuilder.constant(nbGroups())
                                                              : expressionOf(*mSpec, inputs, letters[axis]);
            }
            return kOK;
        });
}

bool OpPlugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "supportsFormatCombination", false,
        [&]
        {
            checkCounts(*mSpec, inOut, nbInputs, inOut, nbOutputs);
            if (pos < 0 || pos >= nbInputs + nbOutputs)
            {
                refuse("tensor %d of %d was asked for", pos, nbInputs + nbOutputs);
            }
            return isSupportedAt(*mSpec, inOut, pos);
        });
}

int32_t OpPlugin::getNbOutputs() const noexcept
{
    return 1;
}

size_t OpPlugin::getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
    DynamicPluginTensorDesc const* outputs, int32_t nbOutputs) const noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "getWorkspaceSize", size_t{0},
        [&]
        {
            checkCounts(*mSpec, inputs, nbInputs, outputs, nbOutputs);
            checkDescriptors(inputs, outputs);
            return workspaceFor(symbolsOf(inputs, outputs, &DynamicPluginTensorDesc::max), inputs[0].desc.type);
        });
}

int32_t OpPlugin::getNbTactics() noexcept
{
    return static_cast<int32_t>(mTactics.size());
}

int32_t OpPlugin::getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "getValidTactics", kERROR,
        [&]
        {
            if (nbTactics != getNbTactics() || (tactics == nullptr && nbTactics > 0))
            {
                refuse("room for %d tactics, there are %d", nbTactics, getNbTactics());
            }
            std::copy(mTactics.begin(), mTactics.end(), tactics);
            return kOK;
        });
}

char const* OpPlugin::getTimingCacheID() noexcept
{
    // TensorRT puts shapes, types and formats in front. What is left is the attributes, and the kernels: a cache written
    // with other sources has timed other kernels.
    return guarded(mSpec->name, mLayer.c_str(), "getTimingCacheID", static_cast<char const*>(nullptr),
        [&]
        {
            mTimingCacheId = describeAttributes() + ";kernels=" + kSOURCE_HASH;
            return mTimingCacheId.c_str();
        });
}

char const* OpPlugin::getMetadataString() noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "getMetadataString", static_cast<char const*>(nullptr),
        [&]
        {
            mMetadata = std::string(kPLUGIN_NAMESPACE) + "::" + mSpec->name + ";version=" + kPLUGIN_VERSION + ";"
                + describeAttributes();
            return mMetadata.c_str();
        });
}

int32_t OpPlugin::setTactic(int32_t tactic) noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "setTactic", kERROR,
        [&]
        {
            if (tactic != 0 && !isTactic(tactic))
            {
                refuse("tactic %d is none of this library's (%s): the engine was built with another one", tactic,
                    kSOURCE_HASH);
            }
            mTactic = tactic;
            return kOK;
        });
}

int32_t OpPlugin::onShapeChange(
    PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out, int32_t nbOutputs) noexcept
{
    // Also called when only addresses change, so it does no more than compare some forty integers.
    return guarded(mSpec->name, mLayer.c_str(), "onShapeChange", kERROR,
        [&]
        {
            checkCounts(*mSpec, in, nbInputs, out, nbOutputs);
            static_cast<void>(symbolsOf(in, out));
            return kOK;
        });
}

int32_t OpPlugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
    void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "enqueue", kERROR,
        [&]
        {
            if (inputDesc == nullptr || outputDesc == nullptr || inputs == nullptr || outputs == nullptr)
            {
                refuse("an argument is null");
            }
            Symbols const symbols = symbolsOf(inputDesc, outputDesc);
            if (symbols[Dim::kB] == 0)
            {
                return kOK; // an empty batch: a launch with an empty grid would be an error
            }
            launch(symbols, inputDesc[0].type, {inputs, outputs, workspace, stream, mTactic});
            return kOK;
        });
}

nvinfer1::IPluginV3* OpPlugin::attachToContext(nvinfer1::IPluginResourceContext* /* context */) noexcept
{
    // No resource of a context is used: the kernels need nothing but their arguments and TensorRT's workspace.
    return clone();
}

nvinfer1::PluginFieldCollection const* OpPlugin::getFieldsToSerialize() noexcept
{
    return guarded(mSpec->name, mLayer.c_str(), "getFieldsToSerialize",
        static_cast<nvinfer1::PluginFieldCollection const*>(nullptr),
        [&]
        {
            mFields.clear();
            writeFields(mFields);
            mOrigin.write(mFields);
            return mFields.collection();
        });
}

} // namespace vimdeploy
