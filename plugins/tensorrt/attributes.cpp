#include "attributes.h"

#include "logging.h"

namespace vimdeploy
{

void checkDirections(std::vector<int32_t> const& directions)
{
    size_t const count = directions.size();
    if (count != 1 && count != 2 && count != kMAX_GROUPS)
    {
        refuse("attribute 'directions' has %zu values, this plugin serves 1, 2 or 4 groups", count);
    }
    for (size_t i = 0; i < count; ++i)
    {
        if (directions[i] != 1 && directions[i] != -1)
        {
            refuse("attribute 'directions' has %d for group %zu, expected 1 or -1", directions[i], i);
        }
    }
}

std::string join(std::vector<int32_t> const& values)
{
    std::string text;
    for (int32_t const value : values)
    {
        text += (text.empty() ? "" : ",") + std::to_string(value);
    }
    return text;
}

DType toDType(nvinfer1::DataType type)
{
    switch (type)
    {
    case nvinfer1::DataType::kFLOAT: return DType::kFLOAT32;
    case nvinfer1::DataType::kHALF: return DType::kFLOAT16;
    case nvinfer1::DataType::kBF16: return DType::kBFLOAT16;
    default: refuse("data type %d has no kernel", static_cast<int32_t>(type));
    }
}

} // namespace vimdeploy
