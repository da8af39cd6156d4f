/*! \file c_api.h
 *  Plain C entry points of the CPU kernels, for callers without ONNX Runtime (vimdeploy/ops/cpu_kernels.py).
 *
 *  Functions return 0 or a negative code, and put the sentence that explains it into the caller's buffer. Nothing is
 *  kept between calls, and any number of threads may call. Shapes are checked before any element is read.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C"
{
#endif

#define VIMDEPLOY_OPS_API __attribute__((visibility("default")))

/*! Raised when a struct or a meaning changes. */
#define VIMDEPLOY_OPS_ABI 1

#define VIMDEPLOY_OPS_OK 0
#define VIMDEPLOY_OPS_INVALID (-1) /*!< an argument that does not fit; the sentence names it */

/*! A dense tensor: element 0 float32, 1 float16, 2 bfloat16. */
typedef struct vimdeploy_ops_tensor
{
    void const* data;
    int64_t const* dims;
    int64_t rank;
    int64_t element;
} vimdeploy_ops_tensor;

/*! One call of one op. Attributes that the op does not have are not looked at. */
typedef struct vimdeploy_ops_call
{
    uint64_t struct_size; /*!< sizeof, set by the caller: another version is refused */
    char const* op;       /*!< name in the contract */
    char const* isa;      /*!< avx512, avx2, neon, base; null: the machine's best, or VIMDEPLOY_CPU_ISA */
    int64_t threads;      /*!< at least 1 */
    vimdeploy_ops_tensor const* inputs;
    uint64_t input_count;
    void* output;
    uint64_t output_size; /*!< bytes; must be what the op writes */
    int64_t const* directions;
    int64_t const* column_major;
    uint64_t groups; /*!< length of directions and, if not null, of column_major */
    int64_t height;
    float scale;
    int32_t silu;
    int32_t delta_softplus;
    int32_t reverse;
} vimdeploy_ops_call;

VIMDEPLOY_OPS_API int32_t vimdeploy_ops_abi(void);

/*! The kernels in use. Never null. */
VIMDEPLOY_OPS_API char const* vimdeploy_ops_isa(void);

/*! Whether this machine runs the kernels of that name: 1 or 0. */
VIMDEPLOY_OPS_API int32_t vimdeploy_ops_has_isa(char const* name);

/*! Writes the inputs and the output of an op, "name type shape; ... -> type shape", with the symbols of the contract. */
VIMDEPLOY_OPS_API int32_t vimdeploy_ops_signature(char const* op, char* text, uint64_t size);

VIMDEPLOY_OPS_API int32_t vimdeploy_ops_run(vimdeploy_ops_call const* call, char* text, uint64_t size);

/*! Computes "exp2", "softplus" or "silu" of `count` values, a multiple of 16, as the kernels do: for tests, and for
 *  the floor of the benchmark. */
VIMDEPLOY_OPS_API int32_t vimdeploy_ops_function(
    char const* isa, char const* function, float const* x, float* y, uint64_t count);

#ifdef __cplusplus
}
#endif
