#include "support.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

namespace vimdeploy::test
{
namespace
{

template <typename T>
std::vector<char> bytesOf(std::vector<T> const& values)
{
    std::vector<char> bytes(values.size() * sizeof(T));
    if (!bytes.empty())
    {
        std::memcpy(bytes.data(), values.data(), bytes.size());
    }
    return bytes;
}

//! \p name in storage that outlives the plugin whose literal it may be: the library may be unloaded between.
char const* interned(char const* name)
{
    static std::set<std::string> sNames;
    return sNames.insert(name).first->c_str();
}

template <typename Capability>
Capability& capabilityOf(IPluginV3& plugin, nvinfer1::PluginCapabilityType type)
{
    auto* const capability = plugin.getCapabilityInterface(type);
    EXPECT_NE(capability, nullptr);
    return *static_cast<Capability*>(capability);
}

} // namespace

Fields& Fields::add(char const* name, std::vector<char> bytes, PluginFieldType type, size_t length)
{
    mData.push_back(std::make_shared<std::vector<char>>(std::move(bytes)));
    mFields.emplace_back(name, mData.back()->data(), type, static_cast<int32_t>(length));
    return *this;
}

Fields& Fields::ints(char const* name, std::vector<int32_t> values)
{
    return add(name, bytesOf(values), PluginFieldType::kINT32, values.size());
}

Fields& Fields::longs(char const* name, std::vector<int64_t> values)
{
    return add(name, bytesOf(values), PluginFieldType::kINT64, values.size());
}

Fields& Fields::number(char const* name, float value)
{
    return add(name, bytesOf(std::vector<float>{value}), PluginFieldType::kFLOAT32, 1);
}

Fields& Fields::text(char const* name, std::string value)
{
    size_t const length = value.size();
    return add(name, std::vector<char>(value.begin(), value.end()), PluginFieldType::kCHAR, length);
}

Fields& Fields::raw(char const* name, void const* data, PluginFieldType type, int32_t length)
{
    mFields.emplace_back(name, data, type, length);
    return *this;
}

Fields& Fields::drop(std::string const& name)
{
    auto const isNamed = [&](PluginField const& field) { return field.name != nullptr && name == field.name; };
    mFields.erase(std::remove_if(mFields.begin(), mFields.end(), isNamed), mFields.end());
    return *this;
}

nvinfer1::PluginFieldCollection const* Fields::collection()
{
    mCollection.nbFields = static_cast<int32_t>(mFields.size());
    mCollection.fields = mFields.data();
    return &mCollection;
}

Fields scanFields(std::vector<int32_t> directions, std::vector<int32_t> columnMajor, int32_t height, float scale)
{
    Fields fields;
    fields.ints("directions", std::move(directions)).ints("column_major", std::move(columnMajor));
    fields.ints("height", {height}).number("scale", scale);
    return fields;
}

Fields convFields(std::vector<int32_t> directions, std::string activation)
{
    Fields fields;
    fields.ints("directions", std::move(directions)).text("activation", std::move(activation));
    return fields;
}

Fields deltaFields(int32_t softplus, int32_t reverse)
{
    Fields fields;
    fields.ints("delta_softplus", {softplus}).ints("reverse", {reverse});
    return fields;
}

Fields fieldsOf(std::string const& op)
{
    return op == "CausalConv1d"                              ? convFields()
        : op.find("SelectiveScanDelta") == std::string::npos ? scanFields()
                                                             : deltaFields();
}

nvinfer1::IPluginCreatorV3One& creatorOf(std::string const& name)
{
    int32_t count{0};
    nvinfer1::IPluginCreatorInterface* const* const creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i)
    {
        auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        if (name == creator->getPluginName())
        {
            return *creator;
        }
    }
    throw std::runtime_error("no creator " + name);
}

std::unique_ptr<IPluginV3> create(std::string const& op, Fields& fields, nvinfer1::TensorRTPhase phase)
{
    return std::unique_ptr<IPluginV3>(creatorOf(op).createPlugin("/layer/7", fields.collection(), phase));
}

nvinfer1::IPluginV3OneCore& core(IPluginV3& plugin)
{
    return capabilityOf<nvinfer1::IPluginV3OneCore>(plugin, nvinfer1::PluginCapabilityType::kCORE);
}

nvinfer1::IPluginV3OneBuild& build(IPluginV3& plugin)
{
    return capabilityOf<nvinfer1::IPluginV3OneBuild>(plugin, nvinfer1::PluginCapabilityType::kBUILD);
}

nvinfer1::IPluginV3OneRuntime& runtime(IPluginV3& plugin)
{
    return capabilityOf<nvinfer1::IPluginV3OneRuntime>(plugin, nvinfer1::PluginCapabilityType::kRUNTIME);
}

Dims toDims(std::vector<int64_t> const& extents)
{
    Dims dims{};
    dims.nbDims = static_cast<int32_t>(extents.size());
    std::copy(extents.begin(), extents.end(), dims.d);
    return dims;
}

std::vector<PluginTensorDesc> Tensors::fixed() const
{
    std::vector<PluginTensorDesc> descs;
    for (size_t i = 0; i < dims.size(); ++i)
    {
        descs.push_back({toDims(dims[i]), types[i], nvinfer1::TensorFormat::kLINEAR, 1.0F});
    }
    return descs;
}

std::vector<DynamicPluginTensorDesc> Tensors::dynamic() const
{
    std::vector<DynamicPluginTensorDesc> descs;
    for (PluginTensorDesc const& desc : fixed())
    {
        descs.push_back({desc, desc.dims, desc.dims, desc.dims});
    }
    return descs;
}

int32_t Tensors::nbInputs() const
{
    return static_cast<int32_t>(dims.size()) - 1;
}

Tensors scanTensors(ScanSizes const& s, DataType type)
{
    DataType const f32 = DataType::kFLOAT;
    Tensors tensors{
        {{s.sharedU ? 1 : s.groups, s.batch, s.length, s.channels},
            {s.sharedXDbl ? 1 : s.groups, s.batch, s.length, s.rank + 2 * s.states}, {s.groups, s.channels, s.states},
            {s.groups, s.channels}, {s.groups, s.channels, s.rank}, {s.groups, s.channels}},
        {type, type, f32, f32, type, f32}};
    if (s.gated)
    {
        tensors.dims.push_back({s.batch, s.length, s.channels});
        tensors.types.push_back(type);
    }
    tensors.dims.push_back({s.batch, s.length, s.channels});
    tensors.types.push_back(s.gated ? type : f32);
    return tensors;
}

Tensors deltaTensors(ScanSizes const& s, DataType type)
{
    DataType const f32 = DataType::kFLOAT;
    std::vector<int64_t> const row{s.batch, s.length, s.channels};
    std::vector<int64_t> const pair{s.batch, s.length, s.groups, s.states};
    Tensors tensors{{row, row, {s.channels, s.states}, pair, pair, {s.channels}, {s.channels}},
        {type, type, f32, type, type, f32, f32}};
    if (s.gated)
    {
        tensors.dims.push_back(row);
        tensors.types.push_back(type);
    }
    tensors.dims.push_back(row);
    tensors.types.push_back(s.gated ? type : f32);
    return tensors;
}

Tensors convTensors(int64_t batch, int64_t length, int64_t channels, int64_t width, int64_t groups, DataType type)
{
    return {
        {{batch, length, channels}, {groups, channels, width}, {groups, channels}, {groups, batch, length, channels}},
        {type, type, type, type}};
}

Fields planOf(IPluginV3& plugin)
{
    auto const* const collection = runtime(plugin).getFieldsToSerialize();
    Fields copy;
    for (int32_t i = 0; i < collection->nbFields; ++i)
    {
        PluginField const& field = collection->fields[i];
        auto const* const chars = static_cast<char const*>(field.data);
        auto const* const ints = static_cast<int32_t const*>(field.data);
        char const* const name = interned(field.name);
        switch (field.type)
        {
        case PluginFieldType::kINT32: copy.ints(name, {ints, ints + field.length}); break;
        case PluginFieldType::kFLOAT32: copy.number(name, *static_cast<float const*>(field.data)); break;
        case PluginFieldType::kCHAR: copy.text(name, {chars, chars + field.length}); break;
        default: ADD_FAILURE() << field.name << " is serialised with type " << static_cast<int>(field.type);
        }
    }
    return copy;
}

int32_t enqueue(IPluginV3& plugin, Tensors const& tensors, void* workspace)
{
    std::vector<void const*> inputs;
    for (int32_t i = 0; i < tensors.nbInputs(); ++i)
    {
        inputs.push_back(reinterpret_cast<void const*>(static_cast<uintptr_t>(i) + 1));
    }
    void* const output = reinterpret_cast<void*>(uintptr_t{100});
    auto const descs = tensors.fixed();
    auto const stream = reinterpret_cast<cudaStream_t>(uintptr_t{9});
    return runtime(plugin).enqueue(
        descs.data(), descs.data() + tensors.nbInputs(), inputs.data(), &output, workspace, stream);
}

int32_t configure(IPluginV3& plugin, Tensors const& tensors)
{
    auto const descs = tensors.dynamic();
    int32_t const nbInputs = tensors.nbInputs();
    return build(plugin).configurePlugin(descs.data(), nbInputs, descs.data() + nbInputs, 1);
}

class Listener::Finder
    : public nvinfer1::ILoggerFinder
    , public nvinfer1::ILogger
{
public:
    ~Finder() override = default;

    nvinfer1::ILogger* findLogger() override
    {
        return this;
    }

    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override
    {
        EXPECT_EQ(severity, Severity::kERROR);
        mText += std::string(message) + "\n";
    }

#if NV_TENSORRT_MAJOR >= 11
    // Both bases are versioned interfaces from TensorRT 11 on.
    nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"ILogger", 1, 0};
    }
#endif

    std::string mText;
};

Listener::Listener()
    : mFinder(std::make_unique<Finder>())
{
    setLoggerFinder(mFinder.get());
}

Listener::~Listener()
{
    setLoggerFinder(nullptr);
}

std::string Listener::text() const
{
    return mFinder->mText;
}

void Listener::clear()
{
    mFinder->mText.clear();
}

} // namespace vimdeploy::test
