//! \file abi.h
//! What a plugin library calls on TensorRT, laid out as TensorRT 10 and as TensorRT 11 lay it out.
//!
//! The interfaces that TensorRT calls on us (IPluginV3, its capabilities, IPluginCreatorV3One) are versioned and the same
//! in both majors. The three that we call on TensorRT are not: ILogger and ILoggerFinder gained a base class in 11, and
//! IPluginRegistry lost its IPluginV2 methods, so that the same call sits in another slot of the virtual table. Calling
//! through the headers of the other major does not fail, it calls a neighbour. These mirrors make the call right
//! whichever major is loaded; they are used only when it is not the one whose headers we were compiled with.
#pragma once

#include <NvInferRuntime.h>

namespace vimdeploy::abi
{

//! The major version whose headers this library was compiled with.
inline constexpr int32_t kHEADER_MAJOR{NV_TENSORRT_MAJOR};

//! The first major with the layouts below named "11".
inline constexpr int32_t kNEW_LAYOUT_MAJOR{11};

using Severity = nvinfer1::ILogger::Severity;

class Logger10
{
public:
    virtual void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept = 0;

protected:
    virtual ~Logger10() = default;
};

class Logger11 : public nvinfer1::IVersionedInterface
{
public:
    virtual void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept = 0;
};

class LoggerFinder10
{
public:
    virtual void* findLogger() = 0;

protected:
    virtual ~LoggerFinder10() = default;
};

class LoggerFinder11 : public nvinfer1::IVersionedInterface
{
public:
    virtual void* findLogger() = 0;
};

//! Both registries, as far as the one method that we call; the methods before it only hold its slot.
class Registry10
{
public:
    virtual bool registerCreatorV2(void* creator, char const* pluginNamespace) noexcept = 0;
    virtual void* getPluginCreatorList(int32_t* count) const noexcept = 0;
    virtual void* getPluginCreator(char const* name, char const* version, char const* pluginNamespace) noexcept = 0;

protected:
    virtual ~Registry10() noexcept = default;

public:
    virtual void setErrorRecorder(void* recorder) noexcept = 0;
    virtual void* getErrorRecorder() const noexcept = 0;
    virtual bool deregisterCreatorV2(void const* creator) noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool enabled) = 0;
    virtual void* loadLibrary(char const* path) noexcept = 0;
    virtual void deregisterLibrary(void* handle) noexcept = 0;
    virtual bool registerCreator(
        nvinfer1::IPluginCreatorInterface& creator, nvinfer1::AsciiChar const* pluginNamespace) noexcept = 0;
};

class Registry11
{
protected:
    virtual ~Registry11() noexcept = default;

public:
    virtual void setErrorRecorder(void* recorder) noexcept = 0;
    virtual void* getErrorRecorder() const noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool enabled) = 0;
    virtual void* loadLibrary(char const* path) noexcept = 0;
    virtual void deregisterLibrary(void* handle) noexcept = 0;
    virtual bool registerCreator(
        nvinfer1::IPluginCreatorInterface& creator, nvinfer1::AsciiChar const* pluginNamespace) noexcept = 0;
};

} // namespace vimdeploy::abi
