#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>

namespace vimdeploy::cpu
{

namespace
{

struct Candidate
{
    Kernels const* kernels;
    bool (*runsHere)();
};

// Best first. Each asks for every feature that its unit is compiled with (vimdeploy/native/ops_library.py).
Candidate const kCANDIDATES[] = {
#if defined(__x86_64__) && !defined(VIMDEPLOY_ONLY_BASE)
    {&kKERNELS_AVX512,
        []
        {
            return __builtin_cpu_supports("avx512f") > 0 && __builtin_cpu_supports("avx2") > 0
                && __builtin_cpu_supports("fma") > 0;
        }},
    {&kKERNELS_AVX2, [] { return __builtin_cpu_supports("avx2") > 0 && __builtin_cpu_supports("fma") > 0; }},
#endif
#if defined(__aarch64__) && !defined(VIMDEPLOY_ONLY_BASE)
    {&kKERNELS_NEON, [] { return true; }}, // part of the architecture
#endif
    {&kKERNELS_BASE, [] { return true; }},
};

void learnAboutThisMachine() noexcept
{
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
}

//! \return the name in the environment, "" for none.
char const* wantedName() noexcept
{
    char const* const wanted = std::getenv(kISA_VARIABLE);
    return wanted == nullptr ? "" : wanted;
}

Kernels const& choose() noexcept
{
    if (Kernels const* const named = kernelsNamed(wantedName()))
    {
        return *named;
    }
    learnAboutThisMachine();
    for (Candidate const& candidate : kCANDIDATES)
    {
        if (candidate.runsHere())
        {
            return *candidate.kernels;
        }
    }
    return kKERNELS_BASE;
}

} // namespace

Kernels const* kernelsNamed(char const* name) noexcept
{
    learnAboutThisMachine();
    for (Candidate const& candidate : kCANDIDATES)
    {
        if (std::strcmp(candidate.kernels->name, name) == 0)
        {
            return candidate.runsHere() ? candidate.kernels : nullptr;
        }
    }
    return nullptr;
}

Kernels const& kernels() noexcept
{
    static Kernels const& chosen = choose();
    return chosen;
}

Status checkEnvironment() noexcept
{
    char const* const wanted = wantedName();
    if (*wanted == '\0' || kernelsNamed(wanted) != nullptr)
    {
        return {};
    }
    return Status::error(
        "%s=%s: this machine has no such kernels; its best are %s", kISA_VARIABLE, wanted, kernels().name);
}

} // namespace vimdeploy::cpu
