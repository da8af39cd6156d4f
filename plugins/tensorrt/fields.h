//! \file fields.h
//! Attributes of a plugin as TensorRT's PluginField: read by name and type, written by name and type.
//!
//! The same fields describe a plugin in the ONNX node, in IPluginCreatorV3One::getFieldNames() and in the engine. Nothing
//! is serialised as a raw struct, so a plan does not depend on the layout of our classes.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vimdeploy
{

//! Name and type of one attribute of an op; length is the number of values, 0 for "one per group".
struct FieldSpec
{
    char const* name;
    nvinfer1::PluginFieldType type;
    int32_t length;
};

//! Reads a field collection that may come from anywhere: a parser, a plan, a user.
class FieldReader
{
public:
    //! \throws PluginError if the collection is malformed, has a field twice, or has one that \p specs does not list.
    FieldReader(nvinfer1::PluginFieldCollection const* collection, std::vector<FieldSpec> const& specs);

    //! The integers of field \p name (INT32, or INT64 where every value fits 32 bits).
    //! \throws PluginError if it is missing or of another type.
    std::vector<int32_t> integers(char const* name) const;

    //! As integers(), for a field that must have exactly one value.
    int32_t integer(char const* name) const;

    //! The finite value of field \p name (FLOAT32 or FLOAT64, one value).
    float number(char const* name) const;

    //! Whether there is a field \p name.
    bool has(char const* name) const noexcept;

    //! The characters of field \p name, without a terminating NUL.
    std::string text(char const* name) const;

private:
    nvinfer1::PluginField const* find(char const* name) const noexcept;
    nvinfer1::PluginField const& require(char const* name) const;

    nvinfer1::PluginField const* mFields{nullptr};
    size_t mCount{0};
};

//! The field list of one plugin object. It points into the object's own members, so it is rebuilt by each object (and so
//! after each clone()) instead of being copied.
class FieldWriter
{
public:
    void clear() noexcept;
    void add(char const* name, std::vector<int32_t> const& values);
    void add(char const* name, int32_t const& value);
    void add(char const* name, float const& value);
    void add(char const* name, std::string const& value);

    //! Valid until the next call of a non-const method.
    nvinfer1::PluginFieldCollection const* collection() noexcept;

private:
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

//! What getFieldNames() answers for \p specs: names, types and lengths without data.
std::vector<nvinfer1::PluginField> describeFields(std::vector<FieldSpec> const& specs);

} // namespace vimdeploy
