//! \file preload.cpp
//! The flavour for tools that only dlopen a plugin library (polygraphy --plugins, ONNX Runtime, Triton, LD_PRELOAD): a
//! static constructor registers the creators of getCreators() in the process-wide registry.
//!
//! REGISTER_TENSORRT_PLUGIN would register in the namespace "" and import getPluginRegistry, which fails where TensorRT is
//! loaded with RTLD_LOCAL. The library is linked with -z nodelete: the registry keeps pointers to the creators.

#include "abi.h"
#include "library.h"
#include "op_plugin.h"
#include "registration.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace vimdeploy
{
namespace
{

bool registerWith(void* registry, int32_t major, nvinfer1::IPluginCreatorInterface& creator) noexcept
{
    if (major == abi::kHEADER_MAJOR)
    {
        return static_cast<nvinfer1::IPluginRegistry*>(registry)->registerCreator(creator, kPLUGIN_NAMESPACE);
    }
    return major >= abi::kNEW_LAYOUT_MAJOR
        ? static_cast<abi::Registry11*>(registry)->registerCreator(creator, kPLUGIN_NAMESPACE)
        : static_cast<abi::Registry10*>(registry)->registerCreator(creator, kPLUGIN_NAMESPACE);
}

//! Every child of a shell with LD_PRELOAD set comes through here; most have no use for TensorRT.
bool isPreloadedByEnvironment() noexcept
{
    char const* const preload = std::getenv("LD_PRELOAD");
    return preload != nullptr && std::strstr(preload, "libvimdeploy_plugin_preload") != nullptr;
}

struct Registrar
{
    Registrar() noexcept
    {
        using GetRegistry = void* (*)();
        void* getRegistry = library::find("getPluginRegistry");
        if (getRegistry == nullptr && !isPreloadedByEnvironment())
        {
            if (char const* const file = library::load())
            {
                std::fprintf(stderr,
                    "libvimdeploy_plugin_preload: no TensorRT was loaded in this process yet, so %s was; the plugins "
                    "are "
                    "registered there\n",
                    file);
                getRegistry = library::find("getPluginRegistry");
            }
        }
        int32_t const major = library::processMajor();
        if (getRegistry == nullptr || major == 0)
        {
            if (!isPreloadedByEnvironment())
            {
                std::fprintf(stderr,
                    "libvimdeploy_plugin_preload: no TensorRT is loaded in this process and the system's loader finds "
                    "none, "
                    "so no plugin was registered; load TensorRT first (in Python: import tensorrt), put its folder on "
                    "LD_LIBRARY_PATH, or use libvimdeploy_plugin with load_library\n");
            }
            return;
        }
        void* const registry = reinterpret_cast<GetRegistry>(getRegistry)();
        int32_t count{0};
        nvinfer1::IPluginCreatorInterface* const* const creators = getCreators(count);
        for (int32_t i = 0; i < count; ++i)
        {
            if (!registerWith(registry, major, *creators[i]))
            {
                std::fprintf(stderr,
                    "libvimdeploy_plugin_preload: the registry of TensorRT %d refused creator %d of %d; is another "
                    "vimdeploy plugin library loaded?\n",
                    major, i + 1, count);
            }
        }
    }
};

Registrar const gREGISTRAR;

} // namespace
} // namespace vimdeploy
