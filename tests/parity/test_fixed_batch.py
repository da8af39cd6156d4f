"""A file that takes one batch only is verified with any number of images, and says where it parts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from goldens import golden
from onnx import numpy_helper

from vimdeploy.artifacts.recipe import Parity
from vimdeploy.errors import UsageError
from vimdeploy.parity.compare import verify_onnx
from vimdeploy.parity.ranges import measure

CONTRACT = Parity().fp32


@pytest.fixture(scope="module")
def fixed(exported: object) -> onnx.ModelProto:
    return exported("cls_tiny", batch=4)  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize("count", [1, 4, 6])
def test_any_number_of_images(fixed: onnx.ModelProto, count: int) -> None:
    case = golden("cls_tiny")
    images = np.resize(case.arrays["images"], (count, 3, 64, 64))
    report = verify_onnx(fixed, case.model(), "classify", images, [4], CONTRACT)
    assert report.passed, report.violations
    assert [(r.ops, r.metrics.samples) for r in report.results] == [("body", count), ("native", count)]


def test_where_it_parts_is_found_with_fewer_images_than_its_batch(fixed: onnx.ModelProto) -> None:
    case = golden("cls_tiny")
    broken = onnx.ModelProto()
    broken.CopyFrom(fixed)
    weight = next(t for t in broken.graph.initializer if t.name.endswith("layers.1.mixer.out"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.1, weight.name))
    report = verify_onnx(broken, case.model(), "classify", case.arrays["images"][:2], [4], CONTRACT)
    assert not report.passed
    assert report.departs == "in block 1, the output of its mixer"


def test_another_batch_is_refused_before_anything_runs(fixed: onnx.ModelProto) -> None:
    case = golden("cls_tiny")
    with pytest.raises(UsageError, match="takes batches of 4 only, not of 3"):
        verify_onnx(fixed, case.model(), "classify", case.arrays["images"], [4, 3], CONTRACT)


def test_ranges_are_measured_on_every_image(fixed: onnx.ModelProto, exported: object) -> None:
    images = golden("cls_tiny").arrays["images"]
    images = np.concatenate([images, 3 * images, images[:1]])
    free = measure(exported("cls_tiny"), images)  # type: ignore[operator]
    found = measure(fixed, images)
    named = [name for name in found if name.startswith("block.")]
    assert len(named) >= 4
    for name in named:
        assert found[name] == pytest.approx(free[name], rel=1e-5), name
