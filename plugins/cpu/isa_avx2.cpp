#define VIMDEPLOY_LANES 8
#define VIMDEPLOY_CHUNK 8
#define VIMDEPLOY_KERNELS kKERNELS_AVX2
#define VIMDEPLOY_ISA "avx2"
#include "cpu/kernels.inl"
