#define VIMDEPLOY_LANES 4
#define VIMDEPLOY_CHUNK 8
#define VIMDEPLOY_KERNELS kKERNELS_BASE
#define VIMDEPLOY_ISA "base"
#include "cpu/kernels.inl"
