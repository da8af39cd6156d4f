#include "library.h"

#include <dlfcn.h>

#include <initializer_list>

namespace vimdeploy::library
{
namespace
{

using VersionFunction = int32_t (*)();
using LoggerFunction = void* (*)();

//! getInferLibVersion() is major * 10000 + minor * 100 + patch since TensorRT 10.
constexpr int32_t kMAJOR_FACTOR{10000};

int32_t majorFrom(void* function) noexcept
{
    return function == nullptr ? 0 : reinterpret_cast<VersionFunction>(function)() / kMAJOR_FACTOR;
}

} // namespace

void* find(char const* name) noexcept
{
    if (void* const symbol = dlsym(RTLD_DEFAULT, name))
    {
        return symbol;
    }
    for (char const* file : {"libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer_lean.so.11", "libnvinfer_lean.so.10"})
    {
        if (void* const handle = dlopen(file, RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL))
        {
            void* const symbol = dlsym(handle, name);
            // RTLD_NOLOAD counts a reference; we hold none on a library that is not ours.
            dlclose(handle);
            if (symbol != nullptr)
            {
                return symbol;
            }
        }
    }
    return nullptr;
}

char const* load() noexcept
{
    for (char const* file : {"libnvinfer.so.11", "libnvinfer.so.10"})
    {
        // Never closed: its registry keeps pointers to our creators.
        if (dlopen(file, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE) != nullptr)
        {
            return file;
        }
    }
    return nullptr;
}

int32_t processMajor() noexcept
{
    return majorFrom(find("getInferLibVersion"));
}

int32_t majorOfOwner(void const* object) noexcept
{
    Dl_info owner{};
    void const* const virtualTable = *static_cast<void const* const*>(object);
    if (dladdr(virtualTable, &owner) == 0 || owner.dli_fname == nullptr)
    {
        return 0;
    }
    void* const handle = dlopen(owner.dli_fname, RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL);
    if (handle == nullptr)
    {
        return 0;
    }
    int32_t const major = majorFrom(dlsym(handle, "getInferLibVersion"));
    dlclose(handle);
    return major;
}

void* processLogger(int32_t& major) noexcept
{
    void* const function = find("getLogger");
    if (function == nullptr)
    {
        return nullptr;
    }
    void* const logger = reinterpret_cast<LoggerFunction>(function)();
    major = processMajor();
    return logger;
}

} // namespace vimdeploy::library
