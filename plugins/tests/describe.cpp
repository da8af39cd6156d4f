//! Prints, as JSON, what the creators and plugins answer: fields, tensors, types, and the limits found by asking.
//! tests/plugins/test_objects.py compares it with vimdeploy/contract.py.

#include "support.h"
#include "tensorrt/causal_conv1d_plugin.h"
#include "tensorrt/selective_scan_delta_plugin.h"
#include "tensorrt/selective_scan_plugin.h"

#include <array>
#include <cstdio>
#include <functional>
#include <map>

namespace
{

using namespace vimdeploy::test;
using nvinfer1::TensorFormat;
using vimdeploy::Dim;
using vimdeploy::OpSpec;

constexpr int32_t kMAX_INPUTS{8};

bool isConv(std::string const& op)
{
    return op == "CausalConv1d";
}

bool isDelta(std::string const& op)
{
    return op.find("SelectiveScanDelta") == 0;
}

std::unique_ptr<IPluginV3> make(std::string const& op, size_t groups = 2)
{
    if (isDelta(op))
    {
        Fields fields = deltaFields();
        return create(op, fields);
    }
    std::vector<int32_t> const forward(groups, 1);
    Fields fields = isConv(op) ? convFields(forward) : scanFields(forward, std::vector<int32_t>(groups, 0));
    return create(op, fields);
}

OpSpec const& specOf(std::string const& op)
{
    static std::map<std::string, OpSpec const*> const sSpecs{
        {"CausalConv1d", &vimdeploy::CausalConv1dPlugin::spec()},
        {"SelectiveScan", &vimdeploy::SelectiveScanPlugin::spec()},
        {"SelectiveScanNoGate", &vimdeploy::SelectiveScanNoGatePlugin::spec()},
        {"SelectiveScanDelta", &vimdeploy::SelectiveScanDeltaPlugin::spec()},
        {"SelectiveScanDeltaNoGate", &vimdeploy::SelectiveScanDeltaNoGatePlugin::spec()},
    };
    return *sSpecs.at(op);
}

//! The contract's way of writing a dimension.
char const* letter(Dim dim)
{
    return dim == Dim::kSHARED ? "G|1" : dim == Dim::kX ? "R+2N" : vimdeploy::toString(dim);
}

std::string tensorsOf(OpSpec const& spec)
{
    std::string text;
    for (size_t i = 0; i <= spec.inputs.size(); ++i)
    {
        auto const& tensor = i < spec.inputs.size() ? spec.inputs[i] : spec.output;
        text += std::string(i == 0 ? "" : ", ") + "[\"" + tensor.name + "\"";
        for (Dim const dim : tensor.dims)
        {
            text += std::string(", \"") + letter(dim) + "\"";
        }
        text += "]";
    }
    return text;
}

//! Per tensor "float" or "T", for the number of inputs that the plugin accepts: found by asking, with half for T.
std::string typesOf(nvinfer1::IPluginV3OneBuild& plugin)
{
    Listener listener;
    for (int32_t nbInputs = 1; nbInputs <= kMAX_INPUTS; ++nbInputs)
    {
        std::array<DynamicPluginTensorDesc, kMAX_INPUTS + 1> descs{};
        std::string types;
        for (int32_t pos = 0; pos <= nbInputs; ++pos)
        {
            auto& desc = descs[static_cast<size_t>(pos)].desc;
            desc.format = TensorFormat::kLINEAR;
            desc.type = DataType::kHALF;
            bool const isT = plugin.supportsFormatCombination(pos, descs.data(), nbInputs, 1);
            desc.type = isT ? DataType::kHALF : DataType::kFLOAT;
            if (!plugin.supportsFormatCombination(pos, descs.data(), nbInputs, 1))
            {
                types.clear();
                break;
            }
            types += std::string(types.empty() ? "" : ", ") + (isT ? "\"T\"" : "\"float\"");
        }
        if (!types.empty())
        {
            return types;
        }
    }
    return "";
}

//! The first and last value from 0 to 300 that \p accepts takes.
std::string rangeOf(std::function<bool(int64_t)> const& accepts)
{
    Listener listener;
    int64_t low{-1};
    int64_t high{-1};
    for (int64_t value = 0; value <= 300; ++value)
    {
        if (accepts(value))
        {
            low = low < 0 ? value : low;
            high = value;
        }
    }
    return "[" + std::to_string(low) + ", " + std::to_string(high) + "]";
}

std::string limitsOf(std::string const& op)
{
    auto const plugin = make(op);
    if (isConv(op))
    {
        return "\"K\": "
            + rangeOf([&](int64_t width) { return configure(*plugin, convTensors(2, 17, 24, width)) == 0; });
    }
    ScanSizes base;
    base.gated = op.find("NoGate") == std::string::npos;
    auto const with = [&](int64_t ScanSizes::* member)
    {
        return rangeOf(
            [&](int64_t value)
            {
                ScanSizes sizes = base;
                sizes.*member = value;
                return configure(*plugin, isDelta(op) ? deltaTensors(sizes) : scanTensors(sizes)) == 0;
            });
    };
    std::string const states = "\"N\": " + with(&ScanSizes::states);
    return isDelta(op) ? states : states + ", \"R\": " + with(&ScanSizes::rank);
}

std::string groupsOf(std::string const& op)
{
    Listener listener;
    std::string text;
    for (size_t groups = 0; groups <= 9 && !isDelta(op); ++groups) // there they partition the channels: any number
    {
        if (make(op, groups) != nullptr)
        {
            text += (text.empty() ? "" : ", ") + std::to_string(groups);
        }
    }
    return text;
}

std::string fieldsOf(nvinfer1::IPluginCreatorV3One& creator)
{
    std::string text;
    auto const* const names = creator.getFieldNames();
    for (int32_t i = 0; i < names->nbFields; ++i)
    {
        PluginField const& field = names->fields[i];
        text += std::string(i == 0 ? "" : ", ") + "\"" + field.name + "\": ["
            + std::to_string(static_cast<int32_t>(field.type)) + ", " + std::to_string(field.length) + "]";
    }
    return text;
}

} // namespace

int main()
{
    int32_t count{0};
    nvinfer1::IPluginCreatorInterface* const* const creators = getCreators(count);
    std::printf("[\n");
    for (int32_t i = 0; i < count; ++i)
    {
        auto& creator = *static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        std::string const op = creator.getPluginName();
        auto const plugin = make(op);
        std::printf("{\"name\": \"%s\", \"version\": \"%s\", \"namespace\": \"%s\",\n", op.c_str(),
            creator.getPluginVersion(), creator.getPluginNamespace());
        std::printf("\"fields\": {%s},\n\"tensors\": [%s],\n\"types\": [%s],\n", fieldsOf(creator).c_str(),
            tensorsOf(specOf(op)).c_str(), typesOf(build(*plugin)).c_str());
        std::printf("\"groups\": [%s], \"limits\": {%s}}%s\n", groupsOf(op).c_str(), limitsOf(op).c_str(),
            i + 1 < count ? "," : "");
    }
    std::printf("]\n");
    return 0;
}
