//! Prints, as JSON, what the creators and plugins answer through TensorRT's interfaces: fields, number of inputs, types
//! and ranks. tests/plugins/test_contract.py compares it with vimdeploy/graph/contract.py.

#include "common/registration.h"

#include <NvInferRuntime.h>

#include <array>
#include <cstdio>
#include <memory>
#include <string>

namespace
{

using namespace nvinfer1;

constexpr int32_t kMAX_INPUTS{8};

//! A plugin made of attributes that every op of this library has, or none.
std::unique_ptr<IPluginV3> make(IPluginCreatorV3One& creator)
{
    static int32_t const sDirections[]{1, -1};
    static int32_t const sColumns[]{0, 0};
    static int32_t const sHeight{1};
    static float const sScale{1.0F};
    static char const sActivation[]{'s', 'i', 'l', 'u'};
    std::array<PluginField, kMAX_INPUTS> fields;
    int32_t count{0};
    PluginFieldCollection const* const names = creator.getFieldNames();
    for (int32_t i = 0; i < names->nbFields; ++i)
    {
        std::string const name = names->fields[i].name;
        PluginField& field = fields[static_cast<size_t>(count++)];
        field = name == "directions" ? PluginField("directions", sDirections, PluginFieldType::kINT32, 2)
            : name == "column_major" ? PluginField("column_major", sColumns, PluginFieldType::kINT32, 2)
            : name == "height"       ? PluginField("height", &sHeight, PluginFieldType::kINT32, 1)
            : name == "scale"        ? PluginField("scale", &sScale, PluginFieldType::kFLOAT32, 1)
                                     : PluginField("activation", sActivation, PluginFieldType::kCHAR, 4);
    }
    PluginFieldCollection const collection{count, fields.data()};
    return std::unique_ptr<IPluginV3>(creator.createPlugin("describe", &collection, TensorRTPhase::kBUILD));
}

//! Inputs the plugin accepts, and per tensor "float" or "T": found by asking, with half for T.
std::string typesOf(IPluginV3OneBuild& build)
{
    for (int32_t nbInputs = 1; nbInputs <= kMAX_INPUTS; ++nbInputs)
    {
        std::array<DynamicPluginTensorDesc, kMAX_INPUTS + 1> descs{};
        std::string types;
        for (int32_t pos = 0; pos <= nbInputs; ++pos)
        {
            auto& desc = descs[static_cast<size_t>(pos)].desc;
            desc.format = TensorFormat::kLINEAR;
            desc.type = DataType::kHALF;
            bool const isT = build.supportsFormatCombination(pos, descs.data(), nbInputs, 1);
            desc.type = isT ? DataType::kHALF : DataType::kFLOAT;
            if (!build.supportsFormatCombination(pos, descs.data(), nbInputs, 1))
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

} // namespace

int main()
{
    int32_t count{0};
    IPluginCreatorInterface* const* const creators = getCreators(count);
    std::printf("[\n");
    for (int32_t i = 0; i < count; ++i)
    {
        auto& creator = *static_cast<IPluginCreatorV3One*>(creators[i]);
        std::printf("{\"name\": \"%s\", \"version\": \"%s\", \"namespace\": \"%s\", \"fields\": {", creator.getPluginName(),
            creator.getPluginVersion(), creator.getPluginNamespace());
        PluginFieldCollection const* const names = creator.getFieldNames();
        for (int32_t j = 0; j < names->nbFields; ++j)
        {
            std::printf("%s\"%s\": [%d, %d]", j == 0 ? "" : ", ", names->fields[j].name,
                static_cast<int32_t>(names->fields[j].type), names->fields[j].length);
        }
        std::unique_ptr<IPluginV3> const plugin = make(creator);
        auto& build
            = *static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
        std::printf("}, \"types\": [%s]}%s\n", typesOf(build).c_str(), i + 1 < count ? "," : "");
    }
    std::printf("]\n");
    return 0;
}
