//! \file kernel_bfloat16.cu
//! The scan kernels for T = __nv_bfloat16; see launch_typed.cuh.
#define VIMDEPLOY_SCAN_TYPE __nv_bfloat16
#include "launch_typed.cuh"
