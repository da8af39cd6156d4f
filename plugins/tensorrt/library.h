//! \file library.h
//! Finding TensorRT in the process without being linked to it.
//!
//! A DT_NEEDED on libnvinfer would fail beside a lean runtime, and Python loads TensorRT with RTLD_LOCAL, so that its
//! symbols are not in the global scope either. So: the global scope first, then the libraries that may already be
//! loaded (RTLD_NOLOAD), full before lean.
#pragma once

#include <cstdint>

namespace vimdeploy::library
{

//! The address of TensorRT's C function \p name in this process, or nullptr.
void* find(char const* name) noexcept;

//! The major version of the TensorRT in this process, or 0 without one.
int32_t processMajor() noexcept;

//! Loads the TensorRT that the system's loader finds, for a process that will load it anyway, but later than us.
//! \return the file's name, or nullptr where there is none.
char const* load() noexcept;

//! The TensorRT major version of the library that holds the virtual table of \p object, or 0 if that library is none of
//! TensorRT's.
int32_t majorOfOwner(void const* object) noexcept;

//! The process-wide logger (TensorRT's getLogger), its major version in \p major; nullptr where there is none.
void* processLogger(int32_t& major) noexcept;

} // namespace vimdeploy::library
