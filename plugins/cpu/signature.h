//! \file signature.h
//! The ops' inputs as the contract has them (vimdeploy/contract.py; a test compares the two), and the check of what a
//! caller passes against them.
#pragma once

#include "cpu/status.h"

#include <cstddef>
#include <cstdint>

namespace vimdeploy::cpu
{

//! Element type of a tensor. State and sums are float32 whatever it is.
enum class Element : int32_t
{
    kFLOAT32 = 0,
    kFLOAT16 = 1,
    kBFLOAT16 = 2,
};

//! A dense tensor of a caller.
struct Tensor
{
    void const* data;
    int64_t const* dims;
    int64_t rank;
    Element element;
};

constexpr size_t kMAX_INPUTS = 8;
constexpr uint32_t kALL_INPUTS = (1U << kMAX_INPUTS) - 1U;

struct Input
{
    char const* name;
    bool isT;          //!< of the node's one type T; otherwise float32
    char const* shape; //!< symbols as in the contract: "G|1,B,L,E"
};

struct Signature
{
    char const* op;
    Input inputs[kMAX_INPUTS];
    size_t inputCount;
    bool outputIsT;
    char const* outputShape;
};

extern Signature const kCAUSAL_CONV1D;
extern Signature const kSELECTIVE_SCAN;
extern Signature const kSELECTIVE_SCAN_NO_GATE;
extern Signature const kSELECTIVE_SCAN_DELTA;
extern Signature const kSELECTIVE_SCAN_DELTA_NO_GATE;

//! \return the signature of the op called `name`, null if there is none.
Signature const* findSignature(char const* name) noexcept;

//! Values of the symbols of one call.
class Sizes
{
public:
    //! Binds the symbols of the inputs that `mask` has a bit for; the type of the first input is looked at always.
    //! \return an error that names the input whose rank, size, type or pointer does not fit.
    Status bind(Signature const& signature, Tensor const* inputs, size_t count, uint32_t mask = kALL_INPUTS) noexcept;

    [[nodiscard]] int64_t operator[](char symbol) const noexcept
    {
        return mValues[symbol - 'A'];
    }

    //! \return whether input `i` has one group for all where it could have G.
    [[nodiscard]] bool shared(size_t i) const noexcept
    {
        return (mShared >> i & 1U) != 0U;
    }

private:
    Status bindInput(Signature const& signature, Input const& input, Tensor const& tensor) noexcept;
    [[nodiscard]] Status wrongShape(
        Signature const& signature, Input const& input, Tensor const& tensor) const noexcept;

    int64_t mValues[26]{};
    bool mBound[26]{};
    uint32_t mShared{0};
};

//! Multiplies without overflow. \return false where the product is no int64_t or a factor is negative.
bool multiply(int64_t& product, int64_t factor) noexcept;

} // namespace vimdeploy::cpu
