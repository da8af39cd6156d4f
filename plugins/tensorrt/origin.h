//! \file origin.h
//! Where a plugin comes from: the GPU and the kernels it was built for. Written into every plan.
//!
//! TensorRT asks for the workspace while it builds and freezes the answer in the plan, but the plan may run on another
//! GPU of the same compute capability, with another number of multiprocessors, and beside another build of this library.
//! So a plan says what its numbers were computed from, and a library that would compute others refuses it.
#pragma once

#include "fields.h"

#include <cstdint>
#include <string>
#include <vector>

namespace vimdeploy
{

class Origin
{
public:
    //! The fields that a plan holds besides the attributes of its op. A parser never sees them.
    static std::vector<FieldSpec> const& fields();

    //! This library on the current device.
    static Origin here();

    //! What a plan says.
    //! \throws PluginError if it says nothing, or was built from other kernel sources than this library.
    static Origin read(FieldReader const& reader);

    void write(FieldWriter& writer) const;

    //! Multiprocessors to plan for on the current device: no more than the plan's workspace was computed for.
    int32_t multiprocessors() const noexcept;

    //! Multiprocessors that the workspace is computed for.
    int32_t builtFor() const noexcept
    {
        return mSmCount;
    }

private:
    Origin(int32_t smCount, std::string kernels);

    int32_t mSmCount;
    std::string mKernels;
};

} // namespace vimdeploy
