/*! \file vimdeploy_kernels.h
 *  Plain C entry points of the kernels (libvimdeploy_kernels): no TensorRT, no torch, no C++ in the interface.
 *
 *  Every struct starts with its own size, set by the caller (sizeof): a library of another version refuses it instead
 *  of reading past its end. Fields are only ever appended. Functions return 0 or a negative code; the sentence that
 *  explains it is kept per thread, vimdeploy_last_error(). Pointers are device pointers, the stream is a cudaStream_t
 *  passed as void*. Nothing allocates, synchronises or uses the default stream unless the caller passes it.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define VIMDEPLOY_API __attribute__((visibility("default")))
#else
#define VIMDEPLOY_API
#endif

#ifdef __cplusplus
extern "C"
{
#endif

/*! Raised when a field is appended or a meaning changes. */
#define VIMDEPLOY_KERNELS_ABI 2

#define VIMDEPLOY_FLOAT32 0
#define VIMDEPLOY_FLOAT16 1
#define VIMDEPLOY_BFLOAT16 2

#define VIMDEPLOY_OK 0
#define VIMDEPLOY_INVALID_ARGUMENT (-1) /*!< a null pointer, a struct of another version, a shape out of limits */
#define VIMDEPLOY_WORKSPACE_TOO_SMALL (-2)
#define VIMDEPLOY_CUDA_ERROR (-3)

/*! One selective scan. Layouts as in kernels/selective_scan/launch.h. */
typedef struct vimdeploy_scan_args
{
    uint64_t struct_size;
    int64_t batch;
    int64_t length;
    int32_t channels;
    int32_t states;
    int32_t rank;
    int32_t groups;
    int32_t shared_u;
    int32_t shared_x_dbl;
    int32_t gated;
    int32_t dtype;
    int32_t directions[4];
    int32_t column_major[4];
    int32_t height;
    float scale;
    int32_t variant;  /*!< 0: chosen; else a ScanVariant */
    int32_t sm_count; /*!< 0: asked of the current device */
    void const* u;
    void const* x_dbl;
    void const* a;
    void const* d;
    void const* dt_weight;
    void const* dt_bias;
    void const* z;
    void* y;
    void* workspace;
    uint64_t workspace_size;
    void* stream;
} vimdeploy_scan_args;

/*! One selective scan whose delta is given and whose channels are partitioned into groups. */
typedef struct vimdeploy_scan_delta_args
{
    uint64_t struct_size;
    int64_t batch;
    int64_t length;
    int32_t channels;
    int32_t states;
    int32_t channel_groups;
    int32_t delta_softplus;
    int32_t reverse;
    int32_t gated;
    int32_t dtype;
    int32_t variant;  /*!< 0: chosen; else a ScanVariant */
    int32_t sm_count; /*!< 0: asked of the current device */
    int32_t reserved; /*!< 0 */
    void const* u;
    void const* delta;
    void const* a;
    void const* b;
    void const* c;
    void const* d;
    void const* delta_bias;
    void const* z;
    void* y;
    void* workspace;
    uint64_t workspace_size;
    void* stream;
} vimdeploy_scan_delta_args;

/*! One causal convolution. Layouts as in kernels/causal_conv1d/launch.h. */
typedef struct vimdeploy_conv_args
{
    uint64_t struct_size;
    int64_t batch;
    int64_t length;
    int32_t channels;
    int32_t width;
    int32_t groups;
    int32_t silu;
    int32_t dtype;
    int32_t directions[4];
    int32_t reserved; /*!< 0 */
    void const* x;
    void const* weight;
    void const* bias;
    void* u;
    void* stream;
} vimdeploy_conv_args;

/*! What was decided for a scan, for reports and tests. */
typedef struct vimdeploy_scan_plan
{
    uint64_t struct_size;
    int32_t variant;
    int32_t tile_length;
    int32_t chunks;
    int32_t launches;
    int64_t chunk_length;
    int64_t shared_bytes;
} vimdeploy_scan_plan;

VIMDEPLOY_API int32_t vimdeploy_kernels_abi(void);

/*! "cuda" or "emulated": what the library at hand runs on. */
VIMDEPLOY_API char const* vimdeploy_kernels_backend(void);

/*! The sentence of this thread's last failed call; "" before the first. Never null. */
VIMDEPLOY_API char const* vimdeploy_last_error(void);

/*! Variants able to run the shape, at most `capacity` of them. \return their number or a negative code. */
VIMDEPLOY_API int32_t vimdeploy_scan_variants(vimdeploy_scan_args const* args, int32_t* variants, int32_t capacity);

VIMDEPLOY_API int32_t vimdeploy_scan_plan_query(vimdeploy_scan_args const* args, vimdeploy_scan_plan* plan);

/*! Bytes of workspace. Pointers in `args` are not read. */
VIMDEPLOY_API int32_t vimdeploy_scan_workspace_size(vimdeploy_scan_args const* args, uint64_t* bytes);

VIMDEPLOY_API int32_t vimdeploy_scan(vimdeploy_scan_args const* args);

/*! As the three above, with delta given. */
VIMDEPLOY_API int32_t vimdeploy_scan_delta_variants(
    vimdeploy_scan_delta_args const* args, int32_t* variants, int32_t capacity);
VIMDEPLOY_API int32_t vimdeploy_scan_delta_workspace_size(vimdeploy_scan_delta_args const* args, uint64_t* bytes);
VIMDEPLOY_API int32_t vimdeploy_scan_delta(vimdeploy_scan_delta_args const* args);

VIMDEPLOY_API int32_t vimdeploy_conv(vimdeploy_conv_args const* args);

#ifdef __cplusplus
}
#endif
