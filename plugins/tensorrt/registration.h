//! \file registration.h
//! The two functions that a TensorRT registry looks up in a plugin library.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

extern "C"
{
//! The creators of this library; they live as long as it is loaded.
__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& nbCreators) noexcept;

//! Called by the registry that loads the library, before anything else of it is used.
__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;
}
