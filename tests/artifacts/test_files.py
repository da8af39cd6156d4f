import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vimdeploy.artifacts.files import check_writable, sha256_bytes, sha256_file, sidecar_of, write_all
from vimdeploy.errors import ArtifactError


@pytest.fixture
def pair(tmp_path):
    """Return the paths of a description and an artifact that already lie there."""
    paths = tmp_path / "model.onnx.json", tmp_path / "model.onnx"
    for path in paths:
        path.write_bytes(b"old " + path.name.encode())
    return paths


def new(pair):
    artifact = b"new artifact"
    return {pair[0]: f"describes {sha256_bytes(artifact)}".encode(), pair[1]: artifact}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_all_files_are_written_and_nothing_else_is_left(pair, tmp_path):
    write_all(new(pair))
    assert {path: path.read_bytes() for path in pair} == new(pair)
    assert names(tmp_path) == ["model.onnx", "model.onnx.json"]


def test_one_file_may_be_written_alone(tmp_path):
    write_all({tmp_path / "report.json": b"{}"})
    assert (tmp_path / "report.json").read_bytes() == b"{}"


FUNCTIONS = ("open", "replace", "fsync")


def break_at(monkeypatch, function, count):
    """Make the ``count``-th call fail as on a broken disk."""
    owner = os if function == "fsync" else Path
    right = getattr(owner, function)
    calls = 0

    def broken(*arguments, **options):
        nonlocal calls
        if function != "open" or "w" in str(arguments[1:]) + str(options):
            calls += 1
            if calls == count:
                raise OSError(28, "No space left on device")
        return right(*arguments, **options)

    monkeypatch.setattr(owner, function, broken)


@pytest.mark.parametrize(("function", "count"), [("open", 1), ("open", 2), ("fsync", 1), ("fsync", 2), ("replace", 1)])
def test_a_failure_before_the_artifact_has_its_name_leaves_the_old_files(pair, tmp_path, monkeypatch, function, count):
    before = {path: path.read_bytes() for path in pair}
    with monkeypatch.context() as broken:
        break_at(broken, function, count)
        with pytest.raises(ArtifactError, match="No space left on device"):
            write_all(new(pair))
    assert {path: path.read_bytes() for path in pair} == before
    assert names(tmp_path) == ["model.onnx", "model.onnx.json"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_failure_while_renaming_leaves_an_artifact_with_the_description_of_itself(pair, tmp_path, monkeypatch, count):
    sidecar, artifact = pair
    with monkeypatch.context() as broken:
        break_at(broken, "replace", count)
        with pytest.raises(ArtifactError):
            write_all(new(pair))
    description = sidecar_of(artifact, sidecar).read_bytes()
    both = artifact.read_bytes(), description
    assert both in ((b"old model.onnx", b"old model.onnx.json"), tuple(reversed(new(pair).values())))


def test_the_first_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    pair = tmp_path / "model.onnx.json", tmp_path / "model.onnx"
    with monkeypatch.context() as broken:
        break_at(broken, "fsync", 2)
        with pytest.raises(ArtifactError):
            write_all(new(pair))
    assert names(tmp_path) == []


def test_an_interruption_leaves_the_old_files(pair, tmp_path, monkeypatch):
    def interrupt(_descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_all(new(pair))
    assert pair[1].read_bytes() == b"old model.onnx"
    assert names(tmp_path) == ["model.onnx", "model.onnx.json"]


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_killed_commands_left_is_removed_and_what_running_ones_hold_is_kept(pair, tmp_path):
    dead, running = dead_process(), os.getppid()
    (tmp_path / f".part.{dead}.model.onnx").write_bytes(b"half")
    (tmp_path / f".part.{running}.model.onnx").write_bytes(b"half")
    (tmp_path / f".part.{dead}.other.onnx").write_bytes(b"half")
    (tmp_path / f".part.{dead}-7.model.onnx").write_bytes(b"half")
    (tmp_path / f".pending.{dead}-8.model.onnx.json").write_bytes(b"of another file")
    write_all(new(pair))
    assert names(tmp_path) == sorted(
        ["model.onnx", "model.onnx.json", f".part.{running}.model.onnx", f".part.{dead}.other.onnx"]
    )


@pytest.mark.parametrize("target", ["missing/model.onnx", "file/model.onnx"])
def test_a_folder_that_cannot_be_written_is_found_out_before_the_work(tmp_path, target):
    (tmp_path / "file").write_bytes(b"")
    for attempt in (check_writable, lambda path: write_all({path: b""})):
        with pytest.raises(ArtifactError) as caught:
            attempt(tmp_path / target)
        assert str(tmp_path / target) in caught.value.message
        assert caught.value.hint
    assert names(tmp_path) == ["file"]


def test_asking_whether_a_file_can_be_written_changes_nothing(pair, tmp_path):
    check_writable(pair[1])
    check_writable(tmp_path / "new.onnx")
    assert pair[1].read_bytes() == b"old model.onnx"
    assert names(tmp_path) == ["model.onnx", "model.onnx.json"]


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(ArtifactError, match="is a folder"):
        check_writable(tmp_path)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100))
def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == sha256_bytes(content)


def test_the_hash_of_a_file_larger_than_a_block(tmp_path):
    content = os.urandom(1 << 20) + b"tail"
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == sha256_bytes(content)


WRITER = """
import pathlib, sys
from vimdeploy.artifacts.files import sha256_bytes, sidecar_of, write_all
folder, name, threads = pathlib.Path(sys.argv[1]), sys.argv[2], 3
def work(thread):
    for count in range(25):
        artifact = f"{name} {thread} {count}".encode() * 1000
        sidecar = f"{name} {thread} {count} describes {sha256_bytes(artifact)}".encode()
        write_all({folder / "model.onnx.json": sidecar, folder / "model.onnx": artifact})
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(threads) as pool:
    list(pool.map(work, range(threads)))
"""


def test_many_that_write_one_file_at_once_all_succeed_and_one_of_them_is_there_in_the_end(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in ("one", "other")]
    artifact, sidecar = tmp_path / "model.onnx", tmp_path / "model.onnx.json"
    while any(writer.poll() is None for writer in writers):
        if artifact.exists():
            sidecar_of(artifact, sidecar)  # readers come in between
    for writer in writers:
        assert writer.communicate()[1] == ""
        assert writer.returncode == 0
    assert names(tmp_path) == ["model.onnx", "model.onnx.json"]
    assert sidecar.read_text().endswith(f"describes {sha256_file(artifact)}")


def test_a_description_that_a_kill_left_pending_survives_the_next_failure(pair, tmp_path, monkeypatch):
    """Killed between the two renamings; the next command fails before it wrote: the description is not lost."""
    sidecar, artifact = pair
    artifact.write_bytes(b"newer")
    (tmp_path / f".pending.{dead_process()}-0.model.onnx.json").write_text(f"describes {sha256_bytes(b'newer')}")
    with monkeypatch.context() as broken:
        break_at(broken, "replace", 2)
        with pytest.raises(ArtifactError):
            write_all(new(pair))
    assert sidecar_of(artifact, sidecar).read_text() == f"describes {sha256_file(artifact)}"


def test_names_with_patterns_in_them_are_names(tmp_path):
    pair = tmp_path / "a[1]*.onnx.json", tmp_path / "a[1]*.onnx"
    (tmp_path / f".part.{dead_process()}-0.a[1]*.onnx").write_bytes(b"half")
    write_all(new(pair))
    assert names(tmp_path) == ["a[1]*.onnx", "a[1]*.onnx.json"]
