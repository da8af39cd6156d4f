//! \file version.h
//! What this library is: stated by the build, compiled in, readable from the file without loading it.
#pragma once

namespace vimdeploy
{

//! SHA-256 over the plugin's sources, as CMakeLists.txt and vimdeploy.native.locate.source_hash() both compute it; its first digits.
extern char const* const kSOURCE_HASH;

//! "vimdeploy-plugin-info{...}": JSON with version, source hash, TensorRT and CUDA versions and architectures. `strings`
//! finds it, and so does vimdeploy before it loads the file.
extern char const* const kBUILD_INFO;

} // namespace vimdeploy
