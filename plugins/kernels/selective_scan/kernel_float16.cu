//! \file kernel_float16.cu
//! The scan kernels for T = __half; see launch_typed.cuh.
#define VIMDEPLOY_SCAN_TYPE __half
#include "launch_typed.cuh"
