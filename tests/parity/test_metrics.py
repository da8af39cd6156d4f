import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vimdeploy.artifacts.recipe import Parity, ParityContract
from vimdeploy.parity.metrics import compare, relative_rms

FP32 = Parity().fp32
FP16 = Parity().fp16
FAST = settings(max_examples=60, deadline=None)
values = st.floats(-100, 100, width=32)
logits = npst.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 12)), elements=values)
CONTRACTS = st.sampled_from([FP32, FP16, Parity().bf16, ParityContract()])


@FAST
@given(logits, CONTRACTS)
def test_a_model_equals_itself_under_every_contract(output, contract):
    metrics = compare(output.copy(), output, contract, classes=True)
    assert metrics.passed
    assert (metrics.max_abs, metrics.relative_rms, metrics.cosine, metrics.outside) == (0, 0, 1, 0)
    assert (metrics.top1, metrics.top5) == (1, 1)


@FAST
@given(logits, CONTRACTS, st.sampled_from((math.nan, math.inf, -math.inf)), st.data())
def test_a_value_that_is_no_number_always_fails(output, contract, value, data):
    broken = output.copy()
    broken[tuple(data.draw(st.integers(0, n - 1)) for n in output.shape)] = value
    metrics = compare(broken, output, contract, classes=True)
    assert not metrics.passed
    assert "NaN or infinite" in metrics.violations[0]


@FAST
@given(logits, st.data())
def test_any_element_beyond_the_bound_fails_and_within_it_passes(output, data):
    contract = ParityContract(atol=0.5, rtol=0.01)
    place = tuple(data.draw(st.integers(0, n - 1)) for n in output.shape)
    bound = 0.5 + 0.01 * abs(float(output[place]))
    for factor, passes in ((0.99, True), (1.01, False)):
        moved = output.astype(np.float64)
        moved[place] += factor * bound
        metrics = compare(moved, output, contract, classes=False)
        assert metrics.passed == passes
        assert metrics.outside == (not passes)


@pytest.mark.parametrize("shape", [(2, 9), (3, 10), (2, 10, 1), (1, 10)])
def test_another_shape_fails_with_both_shapes_named(shape):
    metrics = compare(np.zeros(shape, np.float32), np.zeros((2, 10), np.float32), FP32, classes=True)
    assert not metrics.passed
    assert str(shape) in metrics.violations[0]
    assert "(2, 10)" in metrics.violations[0]


def test_zero_outputs_equal_zero_outputs_only():
    zero, one = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    assert compare(zero, zero, FP32, classes=False).passed
    assert not compare(zero, one, FP32, classes=False).passed
    metrics = compare(one, zero, FP32, classes=False)
    assert not metrics.passed
    assert metrics.relative_rms == math.inf


def test_one_wrong_sample_among_many_is_not_averaged_away():
    reference = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    candidate = reference.copy()
    candidate[7] *= -1
    contract = ParityContract(cosine=0.99)
    metrics = compare(candidate, reference, contract, classes=False)
    assert metrics.cosine == pytest.approx(-1)
    assert not metrics.passed


def test_a_tie_within_the_noise_of_the_contract_decides_nothing():
    reference = np.array([[1.0, 1.0 + 1e-5, 0], [3, 1, 0]], np.float32)
    candidate = np.array([[1.0 + 2e-5, 1.0, 0], [3, 1, 0]], np.float32)
    metrics = compare(candidate, reference, FP32, classes=True)
    assert (metrics.top1, metrics.decided) == (1, 1)
    assert metrics.passed


def test_another_best_class_beyond_the_noise_fails():
    reference = np.array([[1.0, 1.1, 0], [3, 1, 0]], np.float32)
    candidate = np.array([[1.1, 1.0, 0], [3, 1, 0]], np.float32)
    metrics = compare(candidate, reference, ParityContract(relative_rms=0.01, top1=0.9), classes=True)
    assert (metrics.top1, metrics.decided) == (0.5, 2)
    assert any("top-1" in text for text in metrics.violations)


def test_no_decided_sample_is_no_agreement_to_miss():
    flat = np.ones((2, 4), np.float32)
    metrics = compare(flat, flat, FP32, classes=True)
    assert (metrics.decided, metrics.top1) == (0, 1)


def test_top_five_counts_the_same_five_in_any_order():
    reference = np.array([[9, 8, 7, 6, 5, 1, 0], [9, 8, 7, 6, 5, 1, 0]], np.float32)
    candidate = np.array([[5, 6, 7, 8, 9, 1, 0], [9, 8, 7, 6, 1, 5, 0]], np.float32)
    assert compare(candidate, reference, ParityContract(), classes=True).top5 == 0.5


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1)])
def test_outputs_that_are_no_logits_have_no_best_class(shape):
    metrics = compare(np.ones(shape, np.float32), np.ones(shape, np.float32), FP32, classes=True)
    assert (metrics.top1, metrics.top5, metrics.passed) == (None, None, True)


def test_half_precision_outputs_are_compared_in_float64():
    reference = np.full((1, 4), 300, np.float16)  # its square overflows float16
    assert relative_rms(reference, reference) == 0
    assert relative_rms(reference * np.float16(1.01), reference) == pytest.approx(0.01, rel=0.1)


@FAST
@given(logits, st.floats(0.25, 4))
def test_relative_rms_does_not_depend_on_the_scale(output, scale):
    noisy = output + 1
    reference = relative_rms(noisy, output)
    if math.isfinite(reference) and np.abs(output).max() > 1e-3:
        assert relative_rms(noisy * scale, output * scale) == pytest.approx(reference, rel=1e-3)


@pytest.mark.parametrize("candidate", [np.ones((2, 3)), np.full((2, 3), np.nan), np.ones((2, 9))])
def test_a_report_is_plain_json_whatever_the_numbers_are(candidate):
    metrics = compare(candidate, np.zeros((2, 3), np.float32), FP32, classes=True)
    plain = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert plain["passed"] is False
    assert plain["violations"]
