//! \file other_tensorrt.cpp
//! A library that is "TensorRT" of the other major as far as a plugin can tell: it states that version and has a logger
//! finder with that layout. test_logging.cpp loads it, as a process loads a TensorRT that we were not compiled for.

#include "tensorrt/abi.h"

#include <string>

namespace
{

using namespace vimdeploy::abi;

constexpr bool kIS_NEW{kHEADER_MAJOR < kNEW_LAYOUT_MAJOR};

std::string gText;

class OtherLogger11 : public Logger11
{
public:
    nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"ILogger", 1, 0};
    }

    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override
    {
        gText += std::to_string(static_cast<int32_t>(severity)) + " " + message;
    }
};

class OtherLogger10 : public Logger10
{
public:
    ~OtherLogger10() override = default;

    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override
    {
        gText += std::to_string(static_cast<int32_t>(severity)) + " " + message;
    }
};

class OtherFinder11 : public LoggerFinder11
{
public:
    nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"ILoggerFinder", 1, 0};
    }

    void* findLogger() override
    {
        return static_cast<Logger11*>(&mLogger);
    }

private:
    OtherLogger11 mLogger;
};

class OtherFinder10 : public LoggerFinder10
{
public:
    ~OtherFinder10() override = default;

    void* findLogger() override
    {
        return static_cast<Logger10*>(&mLogger);
    }

private:
    OtherLogger10 mLogger;
};

} // namespace

extern "C"
{
__attribute__((visibility("default"))) int32_t getInferLibVersion() noexcept
{
    return kIS_NEW ? 110400 : 101400;
}

__attribute__((visibility("default"))) void* otherFinder() noexcept
{
    static OtherFinder11 sNew;
    static OtherFinder10 sOld;
    return kIS_NEW ? static_cast<void*>(static_cast<LoggerFinder11*>(&sNew))
                   : static_cast<void*>(static_cast<LoggerFinder10*>(&sOld));
}

__attribute__((visibility("default"))) char const* otherText() noexcept
{
    return gText.c_str();
}
}
