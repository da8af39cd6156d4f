//! \file attributes.h
//! Checks of attribute values that both ops have.
#pragma once

#include "kernels/common/types.h"

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace vimdeploy
{

//! \throws PluginError unless there are 1, 2 or 4 directions and each is 1 or -1.
void checkDirections(std::vector<int32_t> const& directions);

//! "1,-1": integers as the metadata string and the timing cache id write them.
std::string join(std::vector<int32_t> const& values);

//! The kernels' name of one of the three types that checkTypes() lets pass.
DType toDType(nvinfer1::DataType type);

} // namespace vimdeploy
