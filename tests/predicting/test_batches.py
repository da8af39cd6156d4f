"""The callable for Ray Data and Daft: columns in, columns out, the same numbers as `predict`."""

from __future__ import annotations

import numpy as np
import pytest
from fleet import write_digits

from vimdeploy.artifacts.images import load_images
from vimdeploy.artifacts.manifest import read_manifest
from vimdeploy.commands.predict import predict
from vimdeploy.errors import UsageError
from vimdeploy.predicting.batches import PredictBatch


def test_columns_come_back_with_what_predict_says_and_a_bad_image_has_its_error(digits, tmp_path):
    paths = write_digits(tmp_path / "photos", 6)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    files = sorted((tmp_path / "photos").iterdir())
    batch = {
        "path": np.array([str(path) for path in files], dtype=object),
        "bytes": np.array([path.read_bytes() for path in files], dtype=object),
    }
    found = PredictBatch(str(digits), top=3)(batch)
    assert "bytes" not in found
    rows = {row.image: row for row in predict(digits, files, top=3, batch=6)}
    for place, path in enumerate(files):
        row = rows[str(path)]
        if row.error:
            assert "cannot be read" in found["error"][place]
            assert (found["index"][place], found["label"][place]) == (-1, "")
            assert np.isnan(found["probabilities"][place]).all()
            continue
        assert found["error"][place] == ""
        assert [c.index for c in row.classes] == found["indices"][place].tolist()
        assert found["label"][place] == row.classes[0].label
        assert found["probability"][place] == np.float32(row.classes[0].probability)
    assert len(paths) == 6


def test_tensors_of_any_layout_are_taken(digits, tmp_path):
    images = load_images(write_digits(tmp_path, 4), read_manifest(digits).preprocessing)
    callable_ = PredictBatch(str(digits), column="image")
    plain = callable_({"image": images})
    turned = callable_({"image": np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)})
    np.testing.assert_array_equal(plain["probabilities"], turned["probabilities"])
    with pytest.raises(UsageError, match="no column 'image'"):
        callable_({"photo": images})
    with pytest.raises(UsageError, match="uint8"):
        callable_({"image": np.zeros((2, 32, 32, 3), np.uint8)})
