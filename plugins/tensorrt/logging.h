//! \file logging.h
//! Messages of the plugins: they go through TensorRT's own logger, and never throw.
#pragma once

#include <NvInferRuntime.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace vimdeploy
{

//! What a plugin refuses. Thrown inside the library only; guarded() turns it into a log line and an error code.
class PluginError : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error;
};

//! Throws a PluginError whose text is printf-formatted.
[[noreturn]] void refuse(char const* format, ...) __attribute__((format(printf, 1, 2)));

//! Keeps the finder that TensorRT hands to a library it loads.
void setFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! The major version of the TensorRT that \p object, of one of TensorRT's classes, lives in. Two TensorRTs in one process are
//! common (a lean runtime beside a full one), so the process is not asked, the object is.
//! \return the major version, or that of our headers where the object's library exports no version (a test's double).
int32_t majorOf(void const* object) noexcept;

//! Writes one line to TensorRT's logger, or to stderr while no TensorRT has given us one.
void logMessage(nvinfer1::ILogger::Severity severity, char const* message) noexcept;

//! Logs "vimdeploy <plugin> (<layer>), <method>: <what>" as an error.
void logError(char const* plugin, char const* layer, char const* method, char const* what) noexcept;

//! Runs \p body and returns its result; what it throws is logged and \p onError is returned. Every noexcept override of
//! TensorRT's interfaces passes through here: an exception that leaves one ends the process.
template <typename Result, typename Body>
Result guarded(char const* plugin, char const* layer, char const* method, Result onError, Body&& body) noexcept
{
    try
    {
        return std::forward<Body>(body)();
    }
    catch (std::exception const& error)
    {
        logError(plugin, layer, method, error.what());
    }
    catch (...)
    {
        logError(plugin, layer, method, "unknown exception");
    }
    return onError;
}

} // namespace vimdeploy
