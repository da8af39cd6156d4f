#include "origin.h"

#include "cuda_runtime.h"
#include "logging.h"
#include "version.h"

#include <algorithm>
#include <utility>

namespace vimdeploy
{

Origin::Origin(int32_t smCount, std::string kernels)
    : mSmCount(smCount)
    , mKernels(std::move(kernels))
{
}

std::vector<FieldSpec> const& Origin::fields()
{
    static std::vector<FieldSpec> const sFields{
        {"sm_count", nvinfer1::PluginFieldType::kINT32, 1},
        {"kernels", nvinfer1::PluginFieldType::kCHAR, 0},
    };
    return sFields;
}

Origin Origin::here()
{
    return Origin(smCount(), kSOURCE_HASH);
}

Origin Origin::read(FieldReader const& reader)
{
    if (!reader.has("kernels") || !reader.has("sm_count"))
    {
        refuse("the plan does not say which kernels it was built with, so an older library wrote it; this one has %s. "
               "Build the engine again",
            kSOURCE_HASH);
    }
    Origin origin(reader.integer("sm_count"), reader.text("kernels"));
    if (origin.mKernels != kSOURCE_HASH)
    {
        refuse("the plan was built with other kernels (%.64s) than this library has (%s). Build the engine again, or "
               "load the library it was built with",
            origin.mKernels.c_str(), kSOURCE_HASH);
    }
    if (origin.mSmCount < 1)
    {
        refuse("the plan says that it was built on a GPU of %d multiprocessors", origin.mSmCount);
    }
    return origin;
}

void Origin::write(FieldWriter& writer) const
{
    writer.add("sm_count", mSmCount);
    writer.add("kernels", mKernels);
}

int32_t Origin::multiprocessors() const noexcept
{
    return std::min(mSmCount, smCount());
}

} // namespace vimdeploy
