//! \file convert.inl
//! float16 and bfloat16 to float32 and back, in integers: no instruction set is needed, and whether the thread flushes
//! subnormals makes no difference to what a float16 subnormal is.

namespace
{

VIMDEPLOY_INLINE uint32_t bitsOf(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

VIMDEPLOY_INLINE float floatOf(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

void fromHalf(uint16_t const* from, float* to, int64_t count)
{
    for (int64_t i = 0; i < count; ++i)
    {
        uint32_t const half = from[i];
        uint32_t const magnitude = half & 0x7FFFU;
        uint32_t const widened = (magnitude << 13) + (112U << 23);
        // A subnormal is its integer times 2^-24; infinity and NaN keep their fraction under the largest exponent.
        uint32_t const subnormal = bitsOf(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24F);
        uint32_t const special = widened | (255U << 23);
        uint32_t const bits = magnitude < 0x0400U ? subnormal : (magnitude >= 0x7C00U ? special : widened);
        to[i] = floatOf(bits | ((half & 0x8000U) << 16));
    }
}

void toHalf(float const* from, uint16_t* to, int64_t count)
{
    for (int64_t i = 0; i < count; ++i)
    {
        uint32_t const bits = bitsOf(from[i]);
        uint32_t const magnitude = bits & 0x7FFFFFFFU;
        // Half of the last kept bit, less one where that bit is even: ties go to even. A carry runs into the exponent.
        uint32_t const normal = (magnitude + 0xFFFU + ((magnitude >> 13) & 1U) - (112U << 23)) >> 13;
        // Next to 0.5 one float32 step is one float16 subnormal step, and the addition rounds.
        uint32_t const subnormal = bitsOf(floatOf(magnitude) + 0.5F) - bitsOf(0.5F);
        uint32_t const special = magnitude > 0x7F800000U ? 0x7E00U : 0x7C00U;
        uint32_t const half = magnitude < 0x38800000U ? subnormal : (magnitude >= 0x47800000U ? special : normal);
        to[i] = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000U));
    }
}

void fromBrain(uint16_t const* from, float* to, int64_t count)
{
    for (int64_t i = 0; i < count; ++i)
    {
        to[i] = floatOf(static_cast<uint32_t>(from[i]) << 16);
    }
}

void toBrain(float const* from, uint16_t* to, int64_t count)
{
    for (int64_t i = 0; i < count; ++i)
    {
        uint32_t const bits = bitsOf(from[i]);
        bool const isNan = (bits & 0x7FFFFFFFU) > 0x7F800000U;
        uint32_t const rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
        to[i] = static_cast<uint16_t>(isNan ? (bits >> 16) | 0x0040U : rounded);
    }
}

} // namespace
