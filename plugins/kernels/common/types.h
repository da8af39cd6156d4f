//! \file types.h
//! What every host interface of this folder shares: element types, limits and status codes.
//! Includes nothing from TensorRT, PyTorch or CUDA, so that any of them can stand beside it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vimdeploy
{

//! Element type of the tensors that the contract calls T. State and accumulation are float32 whatever it is.
enum class DType : int32_t
{
    kFLOAT32 = 0,
    kFLOAT16 = 1,
    kBFLOAT16 = 2,
};

//! \return bytes per element, 0 for a value outside the enumeration.
constexpr std::size_t sizeOf(DType type) noexcept
{
    return type == DType::kFLOAT32 ? 4U : (type == DType::kFLOAT16 || type == DType::kBFLOAT16) ? 2U : 0U;
}

//! Limits of the kernels; the contract (op-contract) allows more, the plugin creators refuse it by name.
constexpr int32_t kMAX_GROUPS = 4;
constexpr int32_t kMAX_STATES = 64;
constexpr int32_t kMAX_RANK = 128;
constexpr int32_t kMIN_CONV_WIDTH = 2;
constexpr int32_t kMAX_CONV_WIDTH = 4;

//! Bytes a message buffer needs so that no message of the check functions is cut.
constexpr std::size_t kMESSAGE_SIZE = 256U;

//! Dynamic shared memory no kernel of this folder exceeds: what an AMPERE_PLUS engine may use.
constexpr std::size_t kMAX_SHARED_BYTES = 48U * 1024U;

} // namespace vimdeploy
