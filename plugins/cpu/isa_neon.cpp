#define VIMDEPLOY_LANES 4
#define VIMDEPLOY_CHUNK 16
#define VIMDEPLOY_KERNELS kKERNELS_NEON
#define VIMDEPLOY_ISA "neon"
#include "cpu/kernels.inl"
