#include "version.h"

#include <NvInferVersion.h>

#ifndef VIMDEPLOY_SOURCE_HASH
#error "the build defines VIMDEPLOY_SOURCE_HASH, VIMDEPLOY_VERSION, VIMDEPLOY_CUDA_VERSION and VIMDEPLOY_ARCHITECTURES"
#endif

#define VIMDEPLOY_TO_TEXT_(x) #x
#define VIMDEPLOY_TO_TEXT(x) VIMDEPLOY_TO_TEXT_(x)

namespace vimdeploy
{

char const* const kSOURCE_HASH{VIMDEPLOY_SOURCE_HASH};

// A volatile-free constant that only a reader of the file uses would be dropped: "used" keeps it.
[[gnu::used]] static char const kINFO[]{
    "vimdeploy-plugin-info{\"version\": \"" VIMDEPLOY_VERSION "\", \"source_hash\": \"" VIMDEPLOY_SOURCE_HASH
    "\", \"tensorrt\": \"" VIMDEPLOY_TO_TEXT(NV_TENSORRT_MAJOR) "." VIMDEPLOY_TO_TEXT(
        NV_TENSORRT_MINOR) "\", \"cuda\": \"" VIMDEPLOY_CUDA_VERSION "\", \"architectures\": \"" VIMDEPLOY_ARCHITECTURES
                           "\"}"};

char const* const kBUILD_INFO{kINFO};

} // namespace vimdeploy
