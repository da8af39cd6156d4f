//! \file support.h
//! What the tests need to play TensorRT: field collections, descriptors, symbolic dimensions and a logger that listens.
#pragma once

#include "tensorrt/registration.h"

#include <NvInferRuntime.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace vimdeploy::test
{

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

//! A field collection that owns its data.
class Fields
{
public:
    Fields& ints(char const* name, std::vector<int32_t> values);
    Fields& longs(char const* name, std::vector<int64_t> values);
    Fields& number(char const* name, float value);
    Fields& text(char const* name, std::string value);

    //! Any bytes under any type: what a broken writer could produce.
    Fields& raw(char const* name, void const* data, PluginFieldType type, int32_t length);
    Fields& drop(std::string const& name);

    nvinfer1::PluginFieldCollection const* collection();

private:
    Fields& add(char const* name, std::vector<char> bytes, PluginFieldType type, size_t length);

    std::vector<std::shared_ptr<std::vector<char>>> mData; //!< shared by copies, so that they may outlive each other
    std::vector<PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

Fields scanFields(std::vector<int32_t> directions = {1, -1}, std::vector<int32_t> columnMajor = {0, 0},
    int32_t height = 1, float scale = 0.5F);
Fields convFields(std::vector<int32_t> directions = {1, -1}, std::string activation = "silu");

Fields deltaFields(int32_t softplus = 1, int32_t reverse = 0);

//! Fields that create \p op.
Fields fieldsOf(std::string const& op);

//! The creator called \p name; fails the test if there is none.
nvinfer1::IPluginCreatorV3One& creatorOf(std::string const& name);

std::unique_ptr<IPluginV3> create(
    std::string const& op, Fields& fields, nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD);

nvinfer1::IPluginV3OneCore& core(IPluginV3& plugin);
nvinfer1::IPluginV3OneBuild& build(IPluginV3& plugin);
nvinfer1::IPluginV3OneRuntime& runtime(IPluginV3& plugin);

//! The tensors of one call, inputs then output, as a table the test can bend.
struct Tensors
{
    std::vector<std::vector<int64_t>> dims;
    std::vector<DataType> types;

    //! Descriptors whose min, opt and max are all these dims.
    std::vector<DynamicPluginTensorDesc> dynamic() const;
    std::vector<PluginTensorDesc> fixed() const;
    int32_t nbInputs() const;
};

struct ScanSizes
{
    int64_t batch{2};
    int64_t length{17};
    int64_t channels{24};
    int64_t states{16};
    int64_t rank{3};
    int64_t groups{2};
    bool gated{true};
    bool sharedU{false};
    bool sharedXDbl{false};
};

Tensors scanTensors(ScanSizes const& sizes = {}, DataType type = DataType::kHALF);
Tensors convTensors(int64_t batch = 2, int64_t length = 17, int64_t channels = 24, int64_t width = 4,
    int64_t groups = 2, DataType type = DataType::kHALF);

Tensors deltaTensors(ScanSizes const& sizes = {}, DataType type = DataType::kHALF);

Dims toDims(std::vector<int64_t> const& extents);

//! What configurePlugin() and the like answer for \p tensors.
int32_t configure(IPluginV3& plugin, Tensors const& tensors);

//! What \p plugin serialises, as a plan holds it after the plugin is gone.
Fields planOf(IPluginV3& plugin);

//! Calls enqueue() with addresses that name their position: input i is at i + 1, the output at 100; on stream 9.
int32_t enqueue(IPluginV3& plugin, Tensors const& tensors, void* workspace);

//! Makes symbolic dimensions the way TensorRT does: -1 stands for one that is not constant.
class Expressions
{
public:
    Expressions();
    ~Expressions();

    nvinfer1::IExprBuilder& builder();
    nvinfer1::DimsExprs symbolic(std::vector<int64_t> const& extents);

    //! -1 where the expression is not constant.
    static int64_t valueOf(nvinfer1::IDimensionExpr const* expression);

private:
    class Impl;
    std::unique_ptr<Impl> mImpl;
};

//! While it lives, the messages of the plugins arrive here and nowhere else.
class Listener
{
public:
    Listener();
    ~Listener();
    Listener(Listener const&) = delete;
    Listener& operator=(Listener const&) = delete;

    //! All messages so far, one per line.
    std::string text() const;
    void clear();

private:
    class Finder;
    std::unique_ptr<Finder> mFinder;
};

} // namespace vimdeploy::test
