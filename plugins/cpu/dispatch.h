//! \file dispatch.h
//! Which kernels this machine runs.
#pragma once

#include "cpu/kernels.h"
#include "cpu/status.h"

namespace vimdeploy::cpu
{

//! Environment variable that asks for a lower instruction set than the machine's best.
constexpr char const* kISA_VARIABLE = "VIMDEPLOY_CPU_ISA";

//! \return the kernels called `name` if this machine can run them, else null.
Kernels const* kernelsNamed(char const* name) noexcept;

//! \return the kernels in use: those that VIMDEPLOY_CPU_ISA names, else the machine's best. Decided once per process.
Kernels const& kernels() noexcept;

//! \return an error where VIMDEPLOY_CPU_ISA names kernels that are unknown or that this machine cannot run; kernels()
//!     then are the machine's best.
Status checkEnvironment() noexcept;

} // namespace vimdeploy::cpu
