//! \file causal_conv1d/layout.h
//! How the work is cut: read by the check (plan.cpp), the launch and the kernel.
#pragma once

#include <cstdint>

namespace vimdeploy
{
namespace conv
{

constexpr int32_t kTHREADS = 128;
//! Tokens per thread: a run re-reads K - 1 inputs of its neighbour.
constexpr int32_t kTOKENS = 8;
//! Channels per thread where rows allow it.
constexpr int32_t kVECTOR = 4;

} // namespace conv
} // namespace vimdeploy
