//! \file sanitizer_driver.cpp
//! Runs scans and convolutions through the C interface with one exact allocation per tensor, and without Python, so
//! that compute-sanitizer sees every byte out of bounds and nothing else. Reads one problem per line of the file it is given:
//!     scan <variant> <dtype> <B> <L> <E> <N> <R> <sharedU> <sharedX> <gated> <height> <groups> <dir...> <column...>
//!     conv <dtype> <B> <L> <E> <K> <silu> <groups> <dir...>
//! Ends with 1 when a call is refused or an output holds a NaN, 0 and a count otherwise. With VIMDEPLOY_EMULATION
//! "device" memory is the heap.
#include "c_api/vimdeploy_kernels.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#if !defined(VIMDEPLOY_EMULATION)
#include <cuda_runtime_api.h>
#endif

namespace
{

[[noreturn]] void stop(std::string const& what)
{
    std::fprintf(stderr, "sanitizer_driver: %s\n", what.c_str());
    std::exit(1);
}

#if defined(VIMDEPLOY_EMULATION)
void* allocate(std::size_t bytes)
{
    return std::malloc(bytes);
}
void release(void* pointer)
{
    std::free(pointer);
}
void upload(void* device, void const* host, std::size_t bytes)
{
    std::memcpy(device, host, bytes);
}
void download(void* host, void const* device, std::size_t bytes)
{
    std::memcpy(host, device, bytes);
}
#else
void check(cudaError_t status)
{
    if (status != cudaSuccess)
    {
        stop(cudaGetErrorString(status));
    }
}
void* allocate(std::size_t bytes)
{
    void* pointer = nullptr;
    check(cudaMalloc(&pointer, bytes));
    return pointer;
}
void release(void* pointer)
{
    check(cudaFree(pointer));
}
void upload(void* device, void const* host, std::size_t bytes)
{
    check(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
}
void download(void* host, void const* device, std::size_t bytes)
{
    check(cudaDeviceSynchronize());
    check(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
}
#endif

//! A value in [-1, 1], the same on every machine.
float random()
{
    static uint32_t state = 12345;
    state = state * 1664525U + 1013904223U;
    return static_cast<float>(static_cast<int32_t>(state)) / 2147483648.0F;
}

std::size_t widthOf(int dtype)
{
    return dtype == VIMDEPLOY_FLOAT32 ? 4 : 2;
}

//! Normal values only; rounds towards zero, which is good enough for an input.
uint16_t toHalf(float value, int dtype)
{
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if (dtype == VIMDEPLOY_BFLOAT16)
    {
        return static_cast<uint16_t>(bits >> 16U);
    }
    int const exponent = static_cast<int>((bits >> 23U) & 0xffU) - 127 + 15;
    uint32_t const sign = (bits >> 16U) & 0x8000U;
    return static_cast<uint16_t>(
        exponent <= 0 ? sign : sign | (static_cast<uint32_t>(exponent) << 10U) | ((bits >> 13U) & 0x3ffU));
}

bool isNan(unsigned char const* bytes, int dtype)
{
    if (dtype == VIMDEPLOY_FLOAT32)
    {
        float value;
        std::memcpy(&value, bytes, sizeof(value));
        return std::isnan(value);
    }
    uint16_t bits;
    std::memcpy(&bits, bytes, sizeof(bits));
    uint16_t const infinity = dtype == VIMDEPLOY_FLOAT16 ? 0x7c00U : 0x7f80U;
    return (bits & 0x7fffU) > infinity;
}

//! An exact allocation, freed at the end of the problem.
class Buffer
{
public:
    Buffer(int64_t count, int dtype, float low, float high)
        : mBytes(static_cast<std::size_t>(count) * widthOf(dtype))
        , mDevice(allocate(mBytes))
    {
        std::vector<unsigned char> host(mBytes);
        for (std::size_t i = 0; i < host.size(); i += widthOf(dtype))
        {
            float const value = low + (high - low) * 0.5F * (random() + 1.0F);
            uint16_t const half = toHalf(value, dtype);
            std::memcpy(
                &host[i], dtype == VIMDEPLOY_FLOAT32 ? static_cast<void const*>(&value) : &half, widthOf(dtype));
        }
        upload(mDevice, host.data(), mBytes);
    }

    //! Memory that only the kernels write. On a GPU nothing initialises it, or initcheck would have nothing to find; on the
    //! host, which has no initcheck, it holds NaN bits, so that what is read before it is written shows.
    explicit Buffer(std::size_t bytes)
        : mBytes(bytes)
        , mDevice(allocate(bytes))
    {
#if defined(VIMDEPLOY_EMULATION)
        std::memset(mDevice, 0xff, bytes);
#endif
    }

    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;

    ~Buffer()
    {
        release(mDevice);
    }

    void* get() const
    {
        return mDevice;
    }

    bool holdsNan(int dtype) const
    {
        std::vector<unsigned char> host(mBytes);
        download(host.data(), mDevice, mBytes);
        for (std::size_t i = 0; i < host.size(); i += widthOf(dtype))
        {
            if (isNan(&host[i], dtype))
            {
                return true;
            }
        }
        return false;
    }

private:
    std::size_t mBytes;
    void* mDevice;
};

void runScan(std::istringstream& words, std::string const& line)
{
    vimdeploy_scan_args args{};
    args.struct_size = sizeof(args);
    words >> args.variant >> args.dtype >> args.batch >> args.length >> args.channels >> args.states >> args.rank
        >> args.shared_u >> args.shared_x_dbl >> args.gated >> args.height >> args.groups;
    for (int32_t* table : {args.directions, args.column_major})
    {
        for (int32_t g = 0; g < args.groups; ++g)
        {
            words >> table[g];
        }
    }
    if (!words)
    {
        stop("cannot read: " + line);
    }
    args.scale = 0.5F;
    int const type = args.dtype;
    int64_t const tokens = args.batch * args.length;
    int64_t const rows = int64_t{args.groups} * args.channels;
    Buffer const u((args.shared_u != 0 ? 1 : args.groups) * tokens * args.channels, type, -1.0F, 1.0F);
    Buffer const x((args.shared_x_dbl != 0 ? 1 : args.groups) * tokens * (args.rank + 2 * args.states), type, -1, 1);
    Buffer const a(rows * args.states, VIMDEPLOY_FLOAT32, -16.0F, -1.0F);
    Buffer const d(rows, VIMDEPLOY_FLOAT32, -1.0F, 1.0F);
    Buffer const dtWeight(rows * args.rank, type, -0.2F, 0.2F);
    Buffer const dtBias(rows, VIMDEPLOY_FLOAT32, -6.0F, -2.0F);
    Buffer const z(tokens * args.channels, type, -1.0F, 1.0F);
    int const yType = args.gated != 0 ? type : VIMDEPLOY_FLOAT32;
    Buffer const y(static_cast<std::size_t>(tokens * args.channels) * widthOf(yType));
    uint64_t bytes = 0;
    if (vimdeploy_scan_workspace_size(&args, &bytes) != VIMDEPLOY_OK)
    {
        stop(line + ": " + vimdeploy_last_error());
    }
    Buffer const workspace(static_cast<std::size_t>(bytes == 0 ? 1 : bytes));
    args.u = u.get();
    args.x_dbl = x.get();
    args.a = a.get();
    args.d = d.get();
    args.dt_weight = dtWeight.get();
    args.dt_bias = dtBias.get();
    args.z = args.gated != 0 ? z.get() : nullptr;
    args.y = y.get();
    args.workspace = workspace.get();
    args.workspace_size = bytes;
    if (vimdeploy_scan(&args) != VIMDEPLOY_OK)
    {
        stop(line + ": " + vimdeploy_last_error());
    }
    if (y.holdsNan(yType))
    {
        stop(line + ": the output holds a NaN");
    }
}

void runConv(std::istringstream& words, std::string const& line)
{
    vimdeploy_conv_args args{};
    args.struct_size = sizeof(args);
    words >> args.dtype >> args.batch >> args.length >> args.channels >> args.width >> args.silu >> args.groups;
    for (int32_t g = 0; g < args.groups; ++g)
    {
        words >> args.directions[g];
    }
    if (!words)
    {
        stop("cannot read: " + line);
    }
    int64_t const elements = args.batch * args.length * args.channels;
    int64_t const rows = int64_t{args.groups} * args.channels;
    Buffer const x(elements, args.dtype, -1.0F, 1.0F);
    Buffer const weight(rows * args.width, args.dtype, -1.0F, 1.0F);
    Buffer const bias(rows, args.dtype, -1.0F, 1.0F);
    Buffer const u(static_cast<std::size_t>(elements * args.groups) * widthOf(args.dtype));
    args.x = x.get();
    args.weight = weight.get();
    args.bias = bias.get();
    args.u = u.get();
    if (vimdeploy_conv(&args) != VIMDEPLOY_OK)
    {
        stop(line + ": " + vimdeploy_last_error());
    }
    if (u.holdsNan(args.dtype))
    {
        stop(line + ": the output holds a NaN");
    }
}

} // namespace

int main(int argc, char** argv)
{
    std::ifstream problems(argc == 2 ? argv[1] : "");
    if (!problems)
    {
        stop("give one file of problems");
    }
    int count = 0;
    std::string line;
    while (std::getline(problems, line))
    {
        std::istringstream words(line);
        std::string op;
        words >> op;
        if (op != "scan" && op != "conv")
        {
            stop("cannot read: " + line);
        }
        (op == "scan" ? runScan : runConv)(words, line);
        ++count;
    }
    std::printf("%d problems on %s\n", count, vimdeploy_kernels_backend());
    return 0;
}
