#include "fields.h"

#include "logging.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace vimdeploy
{
namespace
{

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

//! No attribute of ours comes near; a larger length is a broken collection and must not become an allocation.
constexpr int32_t kMAX_FIELD_LENGTH{4096};
constexpr int32_t kMAX_FIELDS{256};

//! Attributes that a node carries for the parser, not for us; a hand-written collection may hold them too.
bool isAddress(char const* name)
{
    return std::strcmp(name, "plugin_version") == 0 || std::strcmp(name, "plugin_namespace") == 0;
}

bool isListed(char const* name, std::vector<FieldSpec> const& specs)
{
    for (FieldSpec const& spec : specs)
    {
        if (std::strcmp(name, spec.name) == 0)
        {
            return true;
        }
    }
    return false;
}

//! Field data has no alignment that one could rely on.
template <typename T>
T valueAt(PluginField const& field, int32_t index)
{
    T value{};
    std::memcpy(&value, static_cast<char const*>(field.data) + sizeof(T) * static_cast<size_t>(index), sizeof(T));
    return value;
}

[[noreturn]] void refuseType(PluginField const& field, char const* wanted)
{
    refuse("attribute '%.64s' has field type %d, expected %s", field.name, static_cast<int32_t>(field.type), wanted);
}

void refuseUnlessOne(PluginField const& field)
{
    if (field.length != 1)
    {
        refuse("attribute '%.64s' has %d values, expected 1", field.name, field.length);
    }
}

} // namespace

FieldReader::FieldReader(nvinfer1::PluginFieldCollection const* collection, std::vector<FieldSpec> const& specs)
{
    if (collection == nullptr)
    {
        refuse("the field collection is null");
    }
    if (collection->nbFields < 0 || collection->nbFields > kMAX_FIELDS
        || (collection->nbFields > 0 && collection->fields == nullptr))
    {
        refuse("the field collection is malformed: %d fields at %p", collection->nbFields,
            static_cast<void const*>(collection->fields));
    }
    mFields = collection->fields;
    mCount = static_cast<size_t>(collection->nbFields);
    for (size_t i = 0; i < mCount; ++i)
    {
        PluginField const& field = mFields[i];
        if (field.name == nullptr)
        {
            refuse("field %zu has no name", i);
        }
        if (field.length < 0 || field.length > kMAX_FIELD_LENGTH || (field.length > 0 && field.data == nullptr))
        {
            refuse("attribute '%.64s' is malformed: %d values at %p", field.name, field.length, field.data);
        }
        if (!isListed(field.name, specs) && !isAddress(field.name))
        {
            refuse("unknown attribute '%.64s'", field.name);
        }
        for (size_t j = 0; j < i; ++j)
        {
            if (std::strcmp(field.name, mFields[j].name) == 0)
            {
                refuse("attribute '%.64s' is given twice", field.name);
            }
        }
    }
}

PluginField const* FieldReader::find(char const* name) const noexcept
{
    for (size_t i = 0; i < mCount; ++i)
    {
        if (std::strcmp(mFields[i].name, name) == 0)
        {
            return mFields + i;
        }
    }
    return nullptr;
}

bool FieldReader::has(char const* name) const noexcept
{
    return find(name) != nullptr;
}

PluginField const& FieldReader::require(char const* name) const
{
    if (PluginField const* const field = find(name))
    {
        return *field;
    }
    refuse("attribute '%s' is missing", name);
}

std::vector<int32_t> FieldReader::integers(char const* name) const
{
    PluginField const& field = require(name);
    std::vector<int32_t> values;
    for (int32_t i = 0; i < field.length; ++i)
    {
        if (field.type == PluginFieldType::kINT32)
        {
            values.push_back(valueAt<int32_t>(field, i));
            continue;
        }
        if (field.type != PluginFieldType::kINT64)
        {
            break;
        }
        int64_t const wide = valueAt<int64_t>(field, i);
        if (wide < std::numeric_limits<int32_t>::min() || wide > std::numeric_limits<int32_t>::max())
        {
            refuse("attribute '%s' has the value %lld, which does not fit 32 bits", name, static_cast<long long>(wide));
        }
        values.push_back(static_cast<int32_t>(wide));
    }
    if (field.type != PluginFieldType::kINT32 && field.type != PluginFieldType::kINT64)
    {
        refuseType(field, "INT32");
    }
    return values;
}

int32_t FieldReader::integer(char const* name) const
{
    std::vector<int32_t> const values = integers(name);
    refuseUnlessOne(require(name));
    return values.front();
}

float FieldReader::number(char const* name) const
{
    PluginField const& field = require(name);
    if (field.type != PluginFieldType::kFLOAT32 && field.type != PluginFieldType::kFLOAT64)
    {
        refuseType(field, "FLOAT32");
    }
    refuseUnlessOne(field);
    double const value = field.type == PluginFieldType::kFLOAT32 ? static_cast<double>(valueAt<float>(field, 0))
                                                                 : valueAt<double>(field, 0);
    if (!(std::abs(value) <= static_cast<double>(std::numeric_limits<float>::max())))
    {
        refuse("attribute '%s' is %g, expected a finite 32-bit number", name, value);
    }
    return static_cast<float>(value);
}

std::string FieldReader::text(char const* name) const
{
    PluginField const& field = require(name);
    if (field.type != PluginFieldType::kCHAR)
    {
        refuseType(field, "CHAR");
    }
    std::string value(static_cast<char const*>(field.data), static_cast<size_t>(field.length));
    // Some writers count the terminating NUL, some do not.
    return value.substr(0, value.find('\0'));
}

void FieldWriter::clear() noexcept
{
    mFields.clear();
}

void FieldWriter::add(char const* name, std::vector<int32_t> const& values)
{
    mFields.emplace_back(name, values.data(), PluginFieldType::kINT32, static_cast<int32_t>(values.size()));
}

void FieldWriter::add(char const* name, int32_t const& value)
{
    mFields.emplace_back(name, &value, PluginFieldType::kINT32, 1);
}

void FieldWriter::add(char const* name, float const& value)
{
    mFields.emplace_back(name, &value, PluginFieldType::kFLOAT32, 1);
}

void FieldWriter::add(char const* name, std::string const& value)
{
    mFields.emplace_back(name, value.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.size()));
}

nvinfer1::PluginFieldCollection const* FieldWriter::collection() noexcept
{
    mCollection.nbFields = static_cast<int32_t>(mFields.size());
    mCollection.fields = mFields.data();
    return &mCollection;
}

std::vector<PluginField> describeFields(std::vector<FieldSpec> const& specs)
{
    std::vector<PluginField> fields;
    for (FieldSpec const& spec : specs)
    {
        fields.emplace_back(spec.name, nullptr, spec.type, spec.length);
    }
    return fields;
}

} // namespace vimdeploy
