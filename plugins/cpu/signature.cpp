#include "cpu/signature.h"

#include <cstring>
#include <initializer_list>

namespace vimdeploy::cpu
{

namespace
{

//! One dimension of a shape text: "E", "G|1" (that or one) or "R+2N".
struct Dimension
{
    char symbol;
    bool orOne;
    char twice; //!< 0, or the symbol whose double is added
};

//! Reads the dimension at `text` and moves behind it and its comma.
Dimension nextDimension(char const*& text) noexcept
{
    Dimension dimension{*text++, false, 0};
    if (*text == '|')
    {
        dimension.orOne = true;
        text += 2;
    }
    else if (*text == '+')
    {
        dimension.twice = text[2];
        text += 3;
    }
    if (*text == ',')
    {
        ++text;
    }
    return dimension;
}

int64_t rankOf(char const* shape) noexcept
{
    int64_t rank = 0;
    for (; *shape != '\0'; ++rank)
    {
        nextDimension(shape);
    }
    return rank;
}

//! Appends to a text of fixed size, which it cuts if need be.
class Text
{
public:
    __attribute__((format(printf, 2, 3))) void add(char const* format, ...) noexcept
    {
        va_list arguments;
        va_start(arguments, format);
        int const written = std::vsnprintf(mText + mLength, sizeof mText - mLength, format, arguments);
        va_end(arguments);
        if (written > 0)
        {
            mLength += static_cast<size_t>(written);
            mLength = mLength < sizeof mText ? mLength : sizeof mText - 1;
        }
    }

    [[nodiscard]] char const* get() const noexcept
    {
        return mText;
    }

private:
    char mText[120]{};
    size_t mLength{0};
};

} // namespace

Signature const kCAUSAL_CONV1D
    = {"CausalConv1d", {{"x", true, "B,L,E"}, {"weight", true, "G,E,K"}, {"bias", true, "G,E"}}, 3, true, "G,B,L,E"};

#define VIMDEPLOY_SCAN_INPUTS                                                                              \
    {"u", true, "G|1,B,L,E"}, {"x_dbl", true, "G|1,B,L,R+2N"}, {"A", false, "G,E,N"}, {"D", false, "G,E"}, \
        {"dt_weight", true, "G,E,R"}, {"dt_bias", false, "G,E"}
#define VIMDEPLOY_DELTA_INPUTS                                                                   \
    {"u", true, "B,L,E"}, {"delta", true, "B,L,E"}, {"A", false, "E,N"}, {"B", true, "B,L,G,N"}, \
        {"C", true, "B,L,G,N"}, {"D", false, "E"}, {"delta_bias", false, "E"}

Signature const kSELECTIVE_SCAN = {"SelectiveScan", {VIMDEPLOY_SCAN_INPUTS, {"z", true, "B,L,E"}}, 7, true, "B,L,E"};
Signature const kSELECTIVE_SCAN_NO_GATE = {"SelectiveScanNoGate", {VIMDEPLOY_SCAN_INPUTS}, 6, false, "B,L,E"};
Signature const kSELECTIVE_SCAN_DELTA
    = {"SelectiveScanDelta", {VIMDEPLOY_DELTA_INPUTS, {"z", true, "B,L,E"}}, 8, true, "B,L,E"};
Signature const kSELECTIVE_SCAN_DELTA_NO_GATE
    = {"SelectiveScanDeltaNoGate", {VIMDEPLOY_DELTA_INPUTS}, 7, false, "B,L,E"};

Signature const* findSignature(char const* name) noexcept
{
    for (Signature const* signature : {&kCAUSAL_CONV1D, &kSELECTIVE_SCAN, &kSELECTIVE_SCAN_NO_GATE,
             &kSELECTIVE_SCAN_DELTA, &kSELECTIVE_SCAN_DELTA_NO_GATE})
    {
        if (std::strcmp(signature->op, name) == 0)
        {
            return signature;
        }
    }
    return nullptr;
}

bool multiply(int64_t& product, int64_t factor) noexcept
{
    return product >= 0 && factor >= 0 && !__builtin_mul_overflow(product, factor, &product);
}

Status Sizes::bind(Signature const& signature, Tensor const* inputs, size_t count, uint32_t mask) noexcept
{
    *this = Sizes{};
    if (count != signature.inputCount)
    {
        return Status::error("%s: takes %zu inputs, not %zu", signature.op, signature.inputCount, count);
    }
    for (size_t i = 0; i < count; ++i)
    {
        if ((mask >> i & 1U) == 0U)
        {
            continue;
        }
        Input const& input = signature.inputs[i];
        Element const expected = input.isT ? inputs[0].element : Element::kFLOAT32;
        if (inputs[i].element != expected)
        {
            return Status::error("%s: %s has another element type than %s", signature.op, input.name,
                input.isT ? signature.inputs[0].name : "float32");
        }
        if (Status status = bindInput(signature, input, inputs[i]); status.failed())
        {
            return status;
        }
    }
    // What other dimensions decide comes last: every symbol is bound now.
    for (size_t i = 0; i < count; ++i)
    {
        if ((mask >> i & 1U) == 0U)
        {
            continue;
        }
        char const* text = signature.inputs[i].shape;
        for (int64_t axis = 0; *text != '\0'; ++axis)
        {
            Dimension const dimension = nextDimension(text);
            int64_t const size = inputs[i].dims[axis];
            int64_t const whole = (*this)[dimension.symbol];
            if ((dimension.orOne && size != 1 && size != whole)
                || (dimension.twice != 0 && (size - whole) != 2 * (*this)[dimension.twice]))
            {
                return wrongShape(signature, signature.inputs[i], inputs[i]);
            }
            if (dimension.orOne && size == 1)
            {
                mShared |= 1U << i;
            }
        }
    }
    return {};
}

Status Sizes::bindInput(Signature const& signature, Input const& input, Tensor const& tensor) noexcept
{
    if (tensor.rank != rankOf(input.shape) || (tensor.rank > 0 && tensor.dims == nullptr))
    {
        return Status::error("%s: %s has %lld dimensions, expected %lld", signature.op, input.name,
            static_cast<long long>(tensor.rank), static_cast<long long>(rankOf(input.shape)));
    }
    int64_t bytes = 2 * static_cast<int64_t>(sizeof(float)); // as float32, with room to add two sizes
    char const* text = input.shape;
    for (int64_t axis = 0; axis < tensor.rank; ++axis)
    {
        Dimension const dimension = nextDimension(text);
        int64_t const size = tensor.dims[axis];
        if (size < 0 || size > INT64_MAX / 16)
        {
            return wrongShape(signature, input, tensor);
        }
        // A zero must not hide that the others overflow.
        if (!multiply(bytes, size == 0 ? 1 : size))
        {
            return Status::error("%s: %s is too large to address", signature.op, input.name);
        }
        if (dimension.orOne || dimension.twice != 0)
        {
            continue;
        }
        size_t const symbol = static_cast<size_t>(dimension.symbol - 'A');
        if (mBound[symbol] && mValues[symbol] != size)
        {
            return wrongShape(signature, input, tensor);
        }
        mBound[symbol] = true;
        mValues[symbol] = size;
    }
    int64_t elements = 1;
    for (int64_t axis = 0; axis < tensor.rank; ++axis)
    {
        elements *= tensor.dims[axis];
    }
    if (elements > 0 && tensor.data == nullptr)
    {
        return Status::error("%s: %s is a null pointer", signature.op, input.name);
    }
    return {};
}

Status Sizes::wrongShape(Signature const& signature, Input const& input, Tensor const& tensor) const noexcept
{
    Text found;
    Text expected;
    char const* text = input.shape;
    for (int64_t axis = 0; axis < tensor.rank; ++axis)
    {
        char const* const separator = axis == 0 ? "" : ", ";
        char const* const start = text;
        Dimension const dimension = nextDimension(text);
        size_t const symbol = static_cast<size_t>(dimension.symbol - 'A');
        int const letters = static_cast<int>(text - start) - (text[-1] == ',' ? 1 : 0);
        found.add("%s%lld", separator, static_cast<long long>(tensor.dims[axis]));
        if (mBound[symbol] && !dimension.orOne && dimension.twice == 0)
        {
            expected.add("%s%lld", separator, static_cast<long long>(mValues[symbol]));
        }
        else
        {
            expected.add("%s%.*s", separator, letters, start);
        }
    }
    return Status::error("%s: %s has shape (%s), expected (%s)", signature.op, input.name, found.get(), expected.get());
}

} // namespace vimdeploy::cpu
