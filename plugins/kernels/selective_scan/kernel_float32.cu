//! \file kernel_float32.cu
//! The scan kernels for T = float; see launch_typed.cuh.
#define VIMDEPLOY_SCAN_TYPE float
#include "launch_typed.cuh"
