//! \file simd.inl
//! Vectors of VIMDEPLOY_LANES floats and the functions of one variable that the kernels need.
//!
//! Every function keeps a NaN: a clamp returns its argument where the comparison is false.

namespace
{

constexpr int kLANES = VIMDEPLOY_LANES;

typedef float Vec __attribute__((vector_size(VIMDEPLOY_LANES * 4)));
typedef float UnalignedVec __attribute__((vector_size(VIMDEPLOY_LANES * 4), aligned(4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(VIMDEPLOY_LANES * 4)));

#define VIMDEPLOY_INLINE inline __attribute__((always_inline))

constexpr float kLOG2_E = 1.44269504088896340736F;
//! Adding and taking away 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
constexpr float kROUND = 12582912.0F;
constexpr int kEXPONENT_SHIFT = 23;

VIMDEPLOY_INLINE Vec splat(float x)
{
    return Vec{} + x;
}

// The compiler would make a comparison and a blend of `bound > x ? bound : x`. x86's instructions return their second
// operand where one is a NaN, ARM's return the NaN.
#if defined(__AVX512F__)
#define VIMDEPLOY_EXTREME(name) _mm512_##name##_ps
#elif defined(__AVX2__)
#define VIMDEPLOY_EXTREME(name) _mm256_##name##_ps
#elif defined(__x86_64__)
#define VIMDEPLOY_EXTREME(name) _mm_##name##_ps
#elif defined(__aarch64__)
#define VIMDEPLOY_EXTREME(name) v##name##q_f32
#endif

VIMDEPLOY_INLINE Vec atLeast(Vec x, float low)
{
#if defined(VIMDEPLOY_EXTREME)
    return VIMDEPLOY_EXTREME(max)(splat(low), x);
#else
    Vec const bound = splat(low);
    return bound > x ? bound : x;
#endif
}

VIMDEPLOY_INLINE Vec atMost(Vec x, float high)
{
#if defined(VIMDEPLOY_EXTREME)
    return VIMDEPLOY_EXTREME(min)(splat(high), x);
#else
    Vec const bound = splat(high);
    return bound < x ? bound : x;
#endif
}

//! The first `lanes` of the vector at `p`; FULL says that all of them are there.
template <bool FULL>
VIMDEPLOY_INLINE Vec load(float const* p, int64_t lanes)
{
    if constexpr (FULL)
    {
        return *reinterpret_cast<UnalignedVec const*>(p);
    }
    Vec v = {};
    memcpy(&v, p, static_cast<size_t>(lanes) * sizeof(float));
    return v;
}

template <bool FULL>
VIMDEPLOY_INLINE void store(float* p, Vec v, int64_t lanes)
{
    if constexpr (FULL)
    {
        *reinterpret_cast<UnalignedVec*>(p) = v;
    }
    else
    {
        memcpy(p, &v, static_cast<size_t>(lanes) * sizeof(float));
    }
}

template <size_t TERMS>
VIMDEPLOY_INLINE Vec polynomial(float const (&coefficients)[TERMS], Vec x)
{
    Vec p = splat(coefficients[TERMS - 1]);
#pragma GCC unroll 16
    for (size_t i = TERMS - 1; i > 0; --i)
    {
        p = p * x + coefficients[i - 1];
    }
    return p;
}

//! p * 2^r for the integer that `rounded` (r + kROUND) holds in its low bits; the result must not be subnormal.
VIMDEPLOY_INLINE Vec scaleByBits(Vec p, Vec rounded)
{
    return reinterpret_cast<Vec>(reinterpret_cast<VecInt>(p) + (reinterpret_cast<VecInt>(rounded) << kEXPONENT_SHIFT));
}

//! 2^(a b), worst relative error 2.8 * 2^-24; below 2^-126 it is that or zero, above 2^128 infinite.
VIMDEPLOY_INLINE Vec exp2OfProduct(Vec a, Vec b)
{
#if defined(__AVX512F__)
    Vec const whole = (a * b + kROUND) - kROUND;
    Vec const p = polynomial(kEXP2, a * b - whole);
    return reinterpret_cast<Vec>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(whole)));
#else
    Vec const x = atMost(atLeast(a * b, -126.0F), 128.0F);
    Vec const rounded = x + kROUND;
    return scaleByBits(polynomial(kEXP2, x - (rounded - kROUND)), rounded);
#endif
}

//! e^x for x of any size: x log2(e) would lose the fraction of a large x, so ln 2 is taken away in two parts.
VIMDEPLOY_INLINE Vec exponential(Vec x)
{
    constexpr float kLN2_HIGH = 0.693145751953125F; // few bits: its product with an exponent is exact
    constexpr float kLN2_LOW = 1.42860682030941723212e-6F;
    x = atMost(atLeast(x, -87.3F), 88.0F);
    Vec const rounded = x * kLOG2_E + kROUND;
    Vec const whole = rounded - kROUND;
    Vec const fraction = (x - whole * kLN2_HIGH) - whole * kLN2_LOW;
    return scaleByBits(polynomial(kEXP2, fraction * kLOG2_E), rounded);
}

//! log(1 + e^x) = max(x, 0) + log1p(e^-|x|), worst relative error 3.7 * 2^-24, in both tails too.
VIMDEPLOY_INLINE Vec softplus(Vec x)
{
    Vec const e = exponential(x > 0.0F ? -x : x);
    // e of a NaN is one, so that the sum below is the NaN of its first term.
    return atLeast(x, 0.0F) + polynomial(kLOG1P, e) * e;
}

VIMDEPLOY_INLINE Vec silu(Vec x)
{
    return x / (1.0F + exponential(-x));
}

//! Flushes subnormal results and operands to zero while it lives: decayed states would cost a hundred times as much.
class FlushSubnormals
{
public:
    FlushSubnormals() noexcept
    {
#if defined(__x86_64__)
        mSaved = __builtin_ia32_stmxcsr();
        __builtin_ia32_ldmxcsr(mSaved | 0x8040U); // flush to zero, subnormals are zero
#elif defined(__aarch64__)
        asm volatile("mrs %0, fpcr" : "=r"(mSaved));
        asm volatile("msr fpcr, %0" : : "r"(mSaved | (uint64_t{1} << 24)));
#endif
    }

    ~FlushSubnormals()
    {
#if defined(__x86_64__)
        __builtin_ia32_ldmxcsr(mSaved);
#elif defined(__aarch64__)
        asm volatile("msr fpcr, %0" : : "r"(mSaved));
#endif
    }

    FlushSubnormals(FlushSubnormals const&) = delete;
    FlushSubnormals& operator=(FlushSubnormals const&) = delete;

private:
#if defined(__x86_64__)
    uint32_t mSaved;
#else
    uint64_t mSaved;
#endif
};

template <typename FUNCTION>
void forEachVector(float const* x, float* y, int64_t count, FUNCTION function)
{
    FlushSubnormals const flush;
    for (int64_t i = 0; i + kLANES <= count; i += kLANES)
    {
        store<true>(y + i, function(load<true>(x + i, kLANES)), kLANES);
    }
}

} // namespace
