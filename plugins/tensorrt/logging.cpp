#include "logging.h"

#include "abi.h"
#include "library.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace vimdeploy
{
namespace
{

//! Longest message that is passed on whole; TensorRT itself cuts long ones too.
constexpr size_t kLINE_SIZE{1024};

std::atomic<nvinfer1::ILoggerFinder*> gFinder{nullptr};

//! The logger as an untyped pointer, because its type depends on the TensorRT that owns it.
void* findLogger(int32_t& major)
{
    void* logger{nullptr};
    if (nvinfer1::ILoggerFinder* const finder = gFinder.load(std::memory_order_acquire))
    {
        void* const untyped = finder;
        major = majorOf(finder);
        logger = major == abi::kHEADER_MAJOR  ? finder->findLogger()
            : major >= abi::kNEW_LAYOUT_MAJOR ? static_cast<abi::LoggerFinder11*>(untyped)->findLogger()
                                              : static_cast<abi::LoggerFinder10*>(untyped)->findLogger();
    }
    // No finder means that we were preloaded, no logger that no engine or builder is at work (a plugin made by hand).
    return logger != nullptr ? logger : library::processLogger(major);
}

} // namespace

void refuse(char const* format, ...)
{
    char text[kLINE_SIZE];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    throw PluginError(text);
}

void setFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    gFinder.store(finder, std::memory_order_release);
}

int32_t majorOf(void const* object) noexcept
{
    int32_t const major = library::majorOfOwner(object);
    return major > 0 ? major : abi::kHEADER_MAJOR;
}

void logMessage(nvinfer1::ILogger::Severity severity, char const* message) noexcept
{
    try
    {
        int32_t major{abi::kHEADER_MAJOR};
        if (void* const logger = findLogger(major))
        {
            if (major == abi::kHEADER_MAJOR)
            {
                static_cast<nvinfer1::ILogger*>(logger)->log(severity, message);
            }
            else if (major >= abi::kNEW_LAYOUT_MAJOR)
            {
                static_cast<abi::Logger11*>(logger)->log(severity, message);
            }
            else
            {
                static_cast<abi::Logger10*>(logger)->log(severity, message);
            }
            return;
        }
    }
    catch (...)
    {
        // findLogger() may throw; the message must still be seen.
    }
    std::fprintf(stderr, "%s\n", message);
}

void logError(char const* plugin, char const* layer, char const* method, char const* what) noexcept
{
    char text[kLINE_SIZE];
    bool const named = layer != nullptr && layer[0] != '\0';
    std::snprintf(text, sizeof(text), "vimdeploy %s%s%.200s%s, %s: %s", plugin, named ? " (" : "", named ? layer : "",
        named ? ")" : "", method, what);
    logMessage(nvinfer1::ILogger::Severity::kERROR, text);
}

} // namespace vimdeploy
