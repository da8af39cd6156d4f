"""Builds that share a timing cache lose nothing of each other's, and a cache that TensorRT refuses stops none."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
import trt_double

from vimdeploy.errors import ArtifactError
from vimdeploy.tensorrt import api as trt
from vimdeploy.tensorrt import timing


def timings_api() -> Any:
    """The double of TensorRT's API, whose caches are sets of names written as JSON."""
    api: Any = trt_double.double(tensorrt_rtx, {})
    make, attach = api.IBuilderConfig.create_timing_cache, api.IBuilderConfig.set_timing_cache
    combine, serialize = api.ITimingCache.combine, api.ITimingCache.serialize

    def create_timing_cache(self: Any, data: bytes) -> Any:
        cache = make(self, data)
        try:
            cache.names = set(json.loads(data or b"[]"))
        except ValueError:
            cache.names = None
        return None if data == b"nonsense" else cache

    def set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
        attach(self, cache, ignore_mismatch)
        return cache.names is not None

    def combine_with(self: Any, other: Any, ignore_mismatch: bool) -> bool:
        combine(self, other, ignore_mismatch)
        if other.names is None:
            return False
        self.names |= other.names
        return True

    def to_memory(self: Any) -> Any:
        memory = serialize(self)
        memory.extend(json.dumps(sorted(self.names)).encode())
        return memory

    api.IBuilderConfig.create_timing_cache, api.IBuilderConfig.set_timing_cache = create_timing_cache, set_timing_cache
    api.ITimingCache.combine, api.ITimingCache.serialize = combine_with, to_memory
    return api


def build_and_store(path: Path, *measured: str, before: bytes | None = None) -> list[str]:
    """What a build does with its cache: read, measure, store. ``before`` stands for a file read some time ago."""
    api = timings_api()
    options = api.IBuilderConfig.__new__(api.IBuilderConfig)
    stored = timing.read(path) if before is None else before
    cache = trt.TimingCache(options, stored)
    cache._cache.names |= set(measured)  # type: ignore[attr-defined]
    return timing.store(path, stored, cache)


def many_builds(path: Path, letter: str, rounds: int) -> None:
    for index in range(rounds):
        assert build_and_store(path, f"{letter}{index}") == []


def test_the_file_is_named_by_what_the_timings_hold_for(tmp_path: Path) -> None:
    path = timing.cache_file(tmp_path / "deep" / "er", "11.4.0", "NVIDIA H200", "sm_90")
    assert path.name == "tensorrt-11.4.0-sm_90-nvidia-h200.timing"
    assert timing.read(path) == b""


def test_a_build_adds_to_what_another_stored_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x.timing"
    build_and_store(path, "a")
    build_and_store(path, "b", before=b"")
    assert json.loads(timing.read(path)) == ["a", "b"]


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.timing"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=many_builds, args=(path, letter, 12)) for letter in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0]
    assert set(json.loads(timing.read(path))) == {f"{letter}{i}" for letter in "ab" for i in range(12)}
    assert {p.name for p in tmp_path.iterdir()} == {"x.timing", ".x.timing.lock"}


@pytest.mark.parametrize("content", [b"of another version", b"nonsense"])
def test_a_cache_that_tensorrt_refuses_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.timing"
    path.write_bytes(content)
    notes = build_and_store(path, "a")
    assert notes == ["TensorRT refused the timing cache x.timing: it is now x.refused, and a new one is there"]
    assert (tmp_path / "x.refused").read_bytes() == content
    assert json.loads(timing.read(path)) == ["a"]
    assert build_and_store(path, "b") == []


def test_a_cache_that_another_build_has_put_right_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.timing"
    build_and_store(path, "a")
    assert build_and_store(path, "b", before=b"of another version") == []
    assert json.loads(timing.read(path)) == ["a", "b"]
    assert not (tmp_path / "x.refused").exists()


def test_a_failure_leaves_the_old_cache(tmp_path: Path) -> None:
    path = tmp_path / "x.timing"
    build_and_store(path, "a")

    def fail(stored: bytes) -> bytes:
        raise ArtifactError("TensorRT could not write it")

    with pytest.raises(ArtifactError):
        timing.merge(path, fail)
    assert json.loads(timing.read(path)) == ["a"]
    build_and_store(path, "b")  # the lock is free again
    (tmp_path / "folder.timing").mkdir()
    with pytest.raises(ArtifactError, match="the timing cache cannot be read"):
        timing.read(tmp_path / "folder.timing")


def test_a_timing_cache_that_cannot_be_kept_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be kept there"):
        timing.read(tmp_path / "file" / "x.timing")
