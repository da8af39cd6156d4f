//! \file node.h
//! What both providers read of ONNX Runtime: attributes, tensors, and the description of an op that it asks for.
#pragma once

#include "cpu/ops.h"
#include "onnxruntime/abi.h"

#include <vector>

//! Hands a failure of ONNX Runtime on.
#define VIMDEPLOY_TRY(call)                    \
    do                                         \
    {                                          \
        if (OrtStatus* const status_ = (call)) \
        {                                      \
            return status_;                    \
        }                                      \
    } while (false)

namespace vimdeploy::ort
{

//! The domain of the ops.
constexpr char const* kDOMAIN = "vimdeploy";

//! One op for one type T. ONNX Runtime merges those of one name.
struct DescribedOp : CustomOp
{
    cpu::Signature const* signature;
    ElementType type;
    char const* provider; //!< null: the CPU
};

//! Fills in what ONNX Runtime asks about an op; creating and running kernels is the provider's.
DescribedOp describe(cpu::Signature const& signature, ElementType type, char const* provider) noexcept;

//! Adds ops to the session of `options`, in a domain that lives as long as the process.
OrtStatus* addToSession(Api const& api, OrtSessionOptions* options, DescribedOp const* ops, size_t count) noexcept;

//! \return a status of ONNX Runtime for a failure, null for success.
OrtStatus* toOrt(Api const& api, cpu::Status const& status) noexcept;

cpu::Element elementOf(ElementType type) noexcept;

//! The attributes of a node, those that its op has.
struct Attributes
{
    cpu::ConvAttributes conv;
    cpu::ScanAttributes scan;
    cpu::DeltaAttributes delta;
};

OrtStatus* readAttributes(
    Api const& api, OrtKernelInfo const* info, cpu::Signature const& signature, Attributes& attributes);

//! Inputs of one call with the memory of their dimensions.
struct Inputs
{
    static constexpr size_t kMAX_RANK = 8;

    cpu::Tensor tensors[cpu::kMAX_INPUTS]{};
    int64_t dims[cpu::kMAX_INPUTS][kMAX_RANK]{};
    size_t count{0};

    //! Describes input `i`, whose type ONNX Runtime has checked.
    OrtStatus* read(Api const& api, OrtValue const* value, DescribedOp const& op, size_t i) noexcept;

    //! Describes all inputs of a call.
    OrtStatus* readAll(Api const& api, OrtKernelContext const* context, DescribedOp const& op) noexcept;
};

} // namespace vimdeploy::ort
