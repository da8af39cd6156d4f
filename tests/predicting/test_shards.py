"""Parquet shards: whole or absent, every image once, and a second run goes on where the first one stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commandline import refuse, succeed, vimdeploy
from fleet import export_digits, write_digits
from hypothesis import given, settings
from hypothesis import strategies as st

from vimdeploy.errors import UsageError
from vimdeploy.predicting.items import Item
from vimdeploy.predicting.rows import ClassScore, Prediction
from vimdeploy.predicting.shards import Job, ShardWriter, rows_per_shard

SCORES = (ClassScore(3, "three", 0.75), ClassScore(1, "one", 0.25))


def items(names: list[str]) -> list[Item]:
    return [Item(name, bytes) for name in names]


def job(rows: int = 4, **changes: object) -> Job:
    return Job(**{"model": "abc", "task": "classify", "top": 2, "labels": None, "rows_per_shard": rows, **changes})


def write(folder: Path, names: list[str], made: list[str] | None = None, **changes: object):
    """Write rows for names; ``made`` takes those that were predicted and not found finished."""
    writer = ShardWriter(str(folder), job(**changes), ["names"])

    def predict(window):
        for item in window:
            if made is not None:
                made.append(item.key)
            yield Prediction(item.key, error="bad") if "bad" in item.key else Prediction(item.key, SCORES)

    summary = writer.write(items(names), predict)
    writer.finish(summary)
    return summary


def table(folder: Path) -> list[dict[str, object]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_rows_come_back_as_they_went_in(tmp_path):
    names = [f"{i}.png" for i in range(9)] + ["bad.png"]
    summary = write(tmp_path / "out", names)
    rows = table(tmp_path / "out")
    assert [row["image"] for row in rows] == names
    assert rows[0]["classes"] == [
        {"index": 3, "label": "three", "probability": 0.75},
        {"index": 1, "label": "one", "probability": 0.25},
    ]
    assert (rows[0]["index"], rows[0]["label"], rows[0]["probability"], rows[0]["error"]) == (3, "three", 0.75, None)
    assert (rows[9]["error"], rows[9]["classes"]) == ("bad", None)
    assert (summary.rows, summary.errors, summary.shards, summary.resumed) == (10, 1, 3, 0)
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["rows"] == 10


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 13), st.sets(st.integers(0, 3)), st.integers(1, 5))
def test_whatever_shards_are_lost_or_damaged_every_row_is_there_once(tmp_path_factory, count, lost, rows):
    folder = tmp_path_factory.mktemp("shards")
    names = [f"{i}.png" for i in range(count)]
    write(folder, names, rows=rows)
    for number in lost:
        path = folder / f"part-{number:05d}.parquet"
        if path.exists():
            path.write_bytes(path.read_bytes()[:-9]) if number % 2 else path.unlink()
    made: list[str] = []
    summary = write(folder, names, made, rows=rows)
    assert [row["image"] for row in table(folder)] == names
    expected = [name for i, name in enumerate(names) if i // rows in lost]
    assert made == expected
    assert summary.resumed == count - len(expected)


@pytest.mark.parametrize("changed", [["a", "x", "c", "d", "e"], ["b", "a", "c", "d", "e"], ["a", "b", "c"], []])
def test_changed_sources_are_refused_and_nothing_is_touched(tmp_path, changed):
    write(tmp_path / "out", list("abcde"), rows=2)
    before = table(tmp_path / "out")
    with pytest.raises(UsageError, match="sources"):
        write(tmp_path / "out", changed, rows=2)
    assert table(tmp_path / "out") == before


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"top": 3}, {"rows": 5}, {"labels": "folders"}, {"task": "features"}]
)
def test_another_job_does_not_add_to_the_folder(tmp_path, change):
    write(tmp_path / "out", list("abcde"))
    with pytest.raises(UsageError, match="another job") as refused:
        write(tmp_path / "out", list("abcde"), **change)
    assert next(iter(change)).replace("rows", "rows_per_shard") in str(refused.value)


def test_a_folder_with_parquet_of_another_origin_is_left_alone(tmp_path):
    (tmp_path / "theirs.parquet").write_bytes(b"data")
    with pytest.raises(UsageError, match="another origin"):
        write(tmp_path, ["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.parquet"]


def test_shards_of_maps_hold_fewer_rows_than_shards_of_classes():
    assert rows_per_shard({}) == 10_000
    assert rows_per_shard({"features": (192,)}) == 10_000
    maps = {"map0": (192, 64, 64), "map1": (192, 32, 32)}
    assert 16 <= rows_per_shard(maps) < 30


# ---- the command


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_digits(folder, 450, by_class=True)
    (folder / "3" / "broken.png").write_bytes(b"no image")
    return folder


def test_the_command_writes_shards_resumes_and_counts_what_is_right(digits, photos, tmp_path):
    out = tmp_path / "out"
    arguments = ["predict", digits, photos, "-o", out, "--labels", "folders", "--shard-rows", 100, "--json"]
    first = succeed(*arguments).json()
    assert (first["rows"], first["shards"], first["errors"], first["resumed"]) == (451, 5, 1, 0)
    assert first["accuracy"]["images"] == 450
    assert first["accuracy"]["top1"] == pytest.approx(0.9911, abs=1e-4), "what examples/digits/vim_digits.json says"
    (out / "part-00002.parquet").unlink()
    second = succeed(*arguments).json()
    assert second["resumed"] == 351
    assert second["accuracy"] == first["accuracy"]
    rows = table(out)
    assert len({row["image"] for row in rows}) == len(rows) == 451
    (bad,) = [row for row in rows if row["error"]]
    assert bad["image"].endswith("broken.png")
    assert "broken.png" in bad["error"]


def test_rows_on_standard_output_are_those_of_the_shards(digits, photos, tmp_path):
    succeed("predict", digits, photos, "-o", tmp_path / "out", "--top", 2)
    lines = succeed("predict", digits, photos, "--format", "ndjson", "--top", 2).stdout.splitlines()
    shards = table(tmp_path / "out")
    for line, row in zip(map(json.loads, lines), shards, strict=True):
        assert line["image"] == row["image"]
        assert line.get("error") == row["error"]
        for a, b in zip(line.get("classes", ()), row["classes"] or (), strict=True):
            assert (a["index"], a["label"]) == (b["index"], b["label"])
            assert np.float32(a["probability"]) == np.float32(b["probability"])


def test_features_tokens_and_maps_become_columns_with_their_shape(photos, tmp_path):
    model = export_digits(tmp_path, "--task", "features")
    succeed("predict", model, photos / "3", "-o", tmp_path / "out")
    shard = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert json.loads(shard.schema.field("features").metadata[b"shape"]) == [48]
    (line, *_) = succeed("predict", model, photos / "3", "--format", "ndjson").stdout.splitlines()
    expected = np.array(json.loads(line)["features"], np.float32)
    np.testing.assert_array_equal(np.array(shard["features"][0].as_py(), np.float32), expected)
    broken = [row for row in shard.to_pylist() if row["error"]]
    assert [row["features"] for row in broken] == [None]
    header, first, *_ = succeed("predict", model, photos / "3", "--format", "csv").stdout.splitlines()
    assert header.split(",")[3:5] == ["features_0", "features_1"]
    assert np.float32(first.split(",")[3]) == expected[0]


def test_maps_are_no_csv(photos, tmp_path):
    model = export_digits(tmp_path, "--task", "tokens")
    refuse("predict", model, photos / "3", "--format", "csv", words=["tokens", "-o"])


def small_files_only() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))


def test_a_full_disk_ends_in_words_and_what_was_finished_stays(digits, photos, tmp_path):
    out = tmp_path / "out"
    succeed("predict", digits, photos, "-o", out, "--shard-rows", 200)
    (out / "part-00001.parquet").unlink()
    process = subprocess.run(
        [sys.executable, "-m", "vimdeploy", "predict", str(digits), str(photos), "-o", str(out), "--shard-rows", "200"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=small_files_only,
    )
    assert process.returncode == 2, process.stderr
    assert "part-00001.parquet: cannot be written" in process.stderr
    assert "Traceback" not in process.stderr
    assert sorted(p.name for p in out.iterdir()) == ["_manifest.json", "part-00000.parquet", "part-00002.parquet"]
    assert succeed("predict", digits, photos, "-o", out, "--shard-rows", 200, "--json").json()["resumed"] == 251


def test_a_folder_that_cannot_be_written_is_named_before_the_work(digits, photos, tmp_path):
    (tmp_path / "file").write_text("")
    refuse("predict", digits, photos, "-o", tmp_path / "file", words=["file", "-o"])
    refuse("predict", digits, photos, "-o", tmp_path / "file" / "below", words=["cannot be written"])


def test_shard_rows_without_shards_is_refused(digits, photos):
    refuse("predict", digits, photos, "--shard-rows", 5, words=["-o FOLDER"])


def test_one_bad_image_is_a_row_and_only_bad_images_are_a_failure(digits, photos):
    result = vimdeploy("predict", digits, photos / "3", "--json")
    assert result.code == 0
    assert "1 of" in result.stderr
    assert "broken.png" in result.stderr
    refuse("predict", digits, photos / "3" / "broken.png", words=["broken.png"])
