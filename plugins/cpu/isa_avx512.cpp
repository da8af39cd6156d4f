#define VIMDEPLOY_LANES 16
#define VIMDEPLOY_CHUNK 16
#define VIMDEPLOY_KERNELS kKERNELS_AVX512
#define VIMDEPLOY_ISA "avx512"
#include "cpu/kernels.inl"
