//! \file selective_scan/launch.h
//! Host interface of the fused selective scan: describe a problem, choose a variant, ask for workspace, launch.
//!
//! Layouts (contiguous, row-major), G = groups, B = batch, L = length, E = channels, N = states, R = rank:
//!     u (G or 1, B, L, E) T     xDbl (G or 1, B, L, R + 2N) T     A (G, E, N) f32     D (G, E) f32
//!     dtWeight (G, E, R) T      dtBias (G, E) f32                 z (B, L, E) T       y (B, L, E) T gated, f32 not gated
//! or, with delta given (SelectiveScanDelta), one scan whose channels are partitioned into P groups:
//!     u, delta, z (B, L, E) T   B, C (B, L, P, N) T, channel e reads group e / (E / P)   A (E, N), D, dtBias (E) f32
//! T is ScanShape::type. Nothing here allocates, synchronises or touches the default stream: every function may be
//! called while a stream is captured. No function throws. All are thread-safe (they keep no state).
#pragma once

#include "kernels/common/launch_status.h"
#include "kernels/common/types.h"

namespace vimdeploy
{

//! One problem. `directions` and `columnMajor` hold one entry per group; entries past `groups` are ignored.
struct ScanShape
{
    int64_t batch{1};
    int64_t length{1};      //!< L, tokens
    int32_t channels{1};    //!< E
    int32_t states{16};     //!< N, 1..64
    int32_t rank{1};        //!< R, 1..128; 0 with delta given
    int32_t groups{1};      //!< G, 1, 2 or 4
    bool sharedU{false};    //!< u has one group that all groups read
    bool sharedXDbl{false}; //!< xDbl has one group that all groups read
    bool gated{true};       //!< SelectiveScan (z, y of type T) or SelectiveScanNoGate (no z, y float32)
    int32_t directions[kMAX_GROUPS]{1, 1, 1, 1};  //!< 1 forward, -1 backward
    int32_t columnMajor[kMAX_GROUPS]{0, 0, 0, 0}; //!< 1: the H x W grid is walked column by column
    int32_t height{0};                            //!< H, only read where some group is column-major (L = H * W)
    float scale{1.0F};
    bool givenDelta{false};   //!< delta, B and C are tensors of their own; one group, one walk
    bool deltaSoftplus{true}; //!< given delta goes through softplus
    int32_t channelGroups{1}; //!< P, with delta given: divides E
    DType type{DType::kFLOAT32};
};

//! How the work is cut. The values are TensorRT tactics and stored in timing caches: never renumber, never use 0.
enum class ScanVariant : int32_t
{
    kNONE = 0,
    kTHREAD_16 = 1, //!< one thread holds 16 states (N = 16: the whole channel)
    kTHREAD_8 = 2,  //!< one thread holds 8 states (N = 8: the whole channel; N = 16: half of it)
    kTHREAD_4 = 3,  //!< one thread holds 4 states (N = 8, 16)
    kTHREAD_1 = 4,  //!< N = 1
    kGENERIC = 5,   //!< every other N up to 64 (and any N: slower, the same result)
    kCHUNKED = 6,   //!< two passes over chunks of L, the widest of the above inside
};
constexpr int32_t kSCAN_VARIANT_COUNT = 6;

//! A decision, complete: the launch does not decide anything further.
struct ScanPlan
{
    ScanVariant variant{ScanVariant::kNONE};
    int32_t tileLength{0};    //!< tokens staged in shared memory at a time
    int32_t chunks{1};        //!< pieces of L scanned side by side (kCHUNKED), else 1
    int64_t chunkLength{0};   //!< tokens per piece, a multiple of tileLength; >= L when chunks is 1
    int64_t sharedBytes{0};   //!< dynamic shared memory of a block, at most kMAX_SHARED_BYTES
    bool stagedWeights{true}; //!< dt_weight held in shared memory; false: too large, read through the caches
};

//! What a plan has to know of the GPU it is made for.
struct ScanDevice
{
    //! Of an H100; the host tests plan for it.
    static constexpr int32_t kDEFAULT_SHARED_PER_SM = 228 * 1024;

    // Implicit: most callers know the number of SMs only.
    ScanDevice(int32_t sms, int32_t sharedBytesPerSm = kDEFAULT_SHARED_PER_SM) noexcept
        : smCount(sms)
        , sharedPerSm(sharedBytesPerSm)
    {
    }

    int32_t smCount;
    int32_t sharedPerSm; //!< bytes of shared memory of one SM, for all its blocks together
};

struct ScanPointers
{
    void const* u{nullptr};
    void const* xDbl{nullptr};
    float const* A{nullptr};
    float const* D{nullptr};
    void const* dtWeight{nullptr};
    float const* dtBias{nullptr};
    void const* delta{nullptr}; //!< these three with delta given, then without xDbl and dtWeight
    void const* B{nullptr};
    void const* C{nullptr};
    void const* z{nullptr}; //!< null exactly when not gated
    void* y{nullptr};
};

//! \return nullptr when the kernels serve `shape`, else `message`, filled with one sentence that names the field, the
//!         value and what is allowed. `size` bytes are available; kMESSAGE_SIZE is enough.
char const* checkScanShape(ScanShape const& shape, char* message, std::size_t size) noexcept;

//! The variants that can run `shape`, best guess for a large batch first.
//! \param[out] variants room for kSCAN_VARIANT_COUNT entries. \return how many were written.
int32_t scanVariants(ScanShape const& shape, ScanVariant variants[kSCAN_VARIANT_COUNT]) noexcept;

//! The plan of one given variant (a TensorRT tactic). The plan's variant is kNONE where it cannot run `shape`.
ScanPlan planScanVariant(ScanShape const& shape, ScanVariant variant, ScanDevice const& device) noexcept;

//! The plan chosen from B, E, L, N and the number of SMs; the table is at the definition (plan.cpp).
ScanPlan planScan(ScanShape const& shape, ScanDevice const& device) noexcept;

//! Bytes of device workspace for `variant`. Never shrinks when batch or length grow, so the value of the largest
//! shape of an optimisation profile serves every smaller one. 0 is possible. 256-byte alignment is expected.
std::size_t scanWorkspaceSize(ScanShape const& shape, ScanVariant variant, int32_t smCount) noexcept;

//! Bytes that this very plan writes: what launchScan() asks of its workspace. At most scanWorkspaceSize() of the same
//! shape, variant and SM count; a plan made for more SMs may need more.
std::size_t planWorkspaceSize(ScanShape const& shape, ScanPlan const& plan) noexcept;

//! What launchScan() refuses: a missing pointer, a plan made for another shape, a workspace that is too small.
//! \return nullptr where the launch may be queued, else `message`, as checkScanShape().
char const* checkScanLaunch(ScanShape const& shape, ScanPlan const& plan, ScanPointers const& pointers,
    Workspace const& workspace, char* message, std::size_t size) noexcept;

//! Queues the kernels on `stream`. `shape` must have passed checkScanShape and `plan` come from one of the functions
//! above for this very shape. Pointers need the alignment of their elements only; 16-byte aligned ones are faster.
//! \return a refusal (checkScanLaunch), else CUDA's own status.
LaunchStatus launchScan(ScanShape const& shape, ScanPlan const& plan, ScanPointers const& pointers,
    Workspace const& workspace, cudaStream_t stream) noexcept;

} // namespace vimdeploy
