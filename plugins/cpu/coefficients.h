//! \file coefficients.h
//! Minimax polynomials, fitted by ../tools/fit_polynomials.py.
#pragma once

namespace vimdeploy::cpu
{

//! 2^f on [-0.5, 0.5] in powers of f. The constant term is exactly 1, so that a step of size zero decays nothing.
constexpr float kEXP2[] = {1.0F, 0.693147F, 0.24022242F, 0.055507336F, 0.009671513F, 0.0013264727F};

//! log1p(e) / e on [0, 1] in powers of e.
constexpr float kLOG1P[] = {1.0F, -0.49999902F, 0.33329964F, -0.24954134F, 0.19675939F, -0.15305592F, 0.106036544F,
    -0.056959525F, 0.019851457F, -0.0032440242F};

} // namespace vimdeploy::cpu
