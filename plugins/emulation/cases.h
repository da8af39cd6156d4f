//! \file cases.h
//! The grids: which problems are run, with which data.
#pragma once

#include "kernels/causal_conv1d/launch.h"
#include "kernels/selective_scan/launch.h"

#include <string>
#include <vector>

namespace vimdeploy
{
namespace testing
{

//! Statistics of the inputs. Every kind but kUSUAL is there to break something.
enum class Data
{
    kUSUAL,    //!< as a trained model has them
    kSMALL_DT, //!< dt near 1e-4, D = 0: an inaccurate log1p or a state in T shows
    kLARGE_DT, //!< dt above 20, past softplus' threshold
    kTINY_DT,  //!< dt near 0: exp(-90)
    kFLAT_A,   //!< A near 0: the state is an accumulator
    kSTEEP_A,  //!< A = -1e4: the decay underflows
    kZERO,     //!< everything 0
    kDENORMAL, //!< u, B, C and z denormal in T
};
constexpr int kDATA_COUNT = 8;

struct ScanCase
{
    ScanShape shape;
    ScanVariant variant{ScanVariant::kNONE}; //!< kNONE: what planScan chooses
    Data data{Data::kUSUAL};
    int32_t smCount{132};
    bool misaligned{false}; //!< tensors start one element off a 16-byte boundary
};

struct ConvCase
{
    ConvShape shape;
    bool misaligned{false};
};

std::string nameOf(ScanCase const& scan);
std::string nameOf(ConvCase const& conv);

//! `grid`: "gate", "full", "small" (one of each kind, for sanitizers and mutants)
std::vector<ScanCase> scanCases(std::string const& grid);
std::vector<ConvCase> convCases(std::string const& grid);

} // namespace testing
} // namespace vimdeploy
