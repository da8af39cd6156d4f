"""`vimdeploy export` under kill -9, Ctrl-C and a full disk: the previous files or the new ones, never half of one."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vimdeploy.artifacts.files import sha256_bytes, sha256_file
from vimdeploy.artifacts.manifest import manifest_path, read_manifest
from vimdeploy.commands.export import export

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "examples" / "digits" / "vim_digits.pth"
RANDOM_KILLS = 3


@dataclass(frozen=True)
class Version:
    """One complete export: the model and its manifest."""

    weights: str
    model: bytes
    manifest: bytes

    def write(self, path: Path) -> None:
        path.write_bytes(self.model)
        manifest_path(path).write_bytes(self.manifest)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Version]:
    """Exports of the model and of the averaged weights, by the hash of the ONNX file."""
    made = {}
    for weights in ("model", "ema"):
        path = tmp_path_factory.mktemp(weights) / "vim.onnx"
        export(CHECKPOINT, path, weights=weights, verify=False)
        version = Version(weights, path.read_bytes(), manifest_path(path).read_bytes())
        made[sha256_bytes(version.model)] = version
    assert len(made) == 2, "both weights gave the same file"
    return made


def start(output: Path, weights: str, *options: str, **popen: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vimdeploy", "export", str(CHECKPOINT), "-o", str(output)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [*command, "--weights", weights, *options], env=env, stderr=subprocess.PIPE, text=True, **popen
    )


def run_to_the_end(output: Path, weights: str) -> None:
    process = start(output, weights, "--no-verify")
    _, text = process.communicate()
    assert process.returncode == 0, text


def assert_whole(path: Path, versions: dict[str, Version]) -> Version:
    """Return the version that lies at ``path``: whole, and described by its manifest."""
    found = sha256_file(path)
    assert found in versions, "the file is neither the previous one nor the new one"
    manifest = read_manifest(path)
    assert manifest.onnx.sha256 == found, "the manifest describes another file"
    assert manifest.checkpoint.weights == versions[found].weights
    return versions[found]


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


# ---- kill -9


def test_random_kills_leave_the_previous_export_or_the_new_one(tmp_path: Path, versions: dict[str, Version]) -> None:
    previous, following = versions.values()
    path = tmp_path / "vim.onnx"
    previous.write(path)
    started = time.monotonic()
    run_to_the_end(path, following.weights)
    whole_run = time.monotonic() - started
    assert assert_whole(path, versions) == following
    for _ in range(RANDOM_KILLS):
        there = assert_whole(path, versions)
        other = next(version for version in versions.values() if version != there)
        # Towards the end, where the writing is: the imports before it take most of a run.
        delay = whole_run * (1 - random.random() ** 2 / 2)
        process = start(path, other.weights, "--no-verify")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert_whole(path, versions)
        assert visible(tmp_path) == {"vim.onnx", "vim.onnx.golden.npz", "vim.onnx.json"}, f"killed after {delay:.3f} s"
    # Whatever the kills left behind does not disturb the next export, which clears it away.
    previous.write(path)
    run_to_the_end(path, following.weights)
    assert assert_whole(path, versions) == following
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vim.onnx", "vim.onnx.golden.npz", "vim.onnx.json"]


KILL_AT_EVENT = """
import os, pathlib, signal, sys
from vimdeploy.artifacts.files import write_all
folder, moment = pathlib.Path(sys.argv[1]), int(sys.argv[2])
contents = {folder / name: (folder / "new" / name).read_bytes() for name in ("vim.onnx.json", "vim.onnx")}
seen = 0
def count(event, arguments):
    global seen
    if event in ("open", "os.rename", "os.remove") and str(folder) in str(arguments[0]):
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1
sys.addaudithook(count)
write_all(contents)
print(seen)
"""


def write_and_die(folder: Path, moment: int) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILL_AT_EVENT, str(folder), str(moment)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_kill_before_each_step_of_writing_is_survived(tmp_path: Path, versions: dict[str, Version]) -> None:
    """Every opening, renaming and removing of a file is a moment to die at, one after the other."""
    previous, following = versions.values()
    (tmp_path / "new").mkdir()
    following.write(tmp_path / "new" / "vim.onnx")
    path = tmp_path / "vim.onnx"
    seen: list[Version] = []
    for moment in range(100):
        previous.write(path)
        done = write_and_die(tmp_path, moment)
        seen.append(assert_whole(path, versions))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert moment >= 4, "two files are opened and renamed: there are at least four moments"
    assert seen[0] == previous
    assert seen[-1] == following
    assert seen == sorted(seen, key=lambda version: version == following), "once new, never old again"
    assert {p.name for p in tmp_path.iterdir()} == {"new", "vim.onnx", "vim.onnx.json"}


def test_the_first_export_killed_leaves_nothing_that_looks_finished(
    tmp_path: Path, versions: dict[str, Version]
) -> None:
    _, following = versions.values()
    (tmp_path / "new").mkdir()
    following.write(tmp_path / "new" / "vim.onnx")
    for moment in range(100):
        for name in visible(tmp_path) - {"new"}:
            (tmp_path / name).unlink()
        done = write_and_die(tmp_path, moment)
        if (tmp_path / "vim.onnx").exists():
            assert assert_whole(tmp_path / "vim.onnx", versions) == following
        if done.returncode == 0:
            break
    assert (tmp_path / "vim.onnx").exists()


# ---- Ctrl-C


def test_ctrl_c_ends_in_words_and_leaves_the_previous_export(tmp_path: Path, versions: dict[str, Version]) -> None:
    previous, following = versions.values()
    path = tmp_path / "vim.onnx"
    previous.write(path)
    process = start(path, following.weights)
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if "Exporting to ONNX" in line:
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate()
    text = "".join(lines) + rest
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert "Interrupted" in text
    assert assert_whole(path, versions) == previous
    assert {p.name for p in tmp_path.iterdir()} == {"vim.onnx", "vim.onnx.json"}


# ---- a full disk


def small_files_only() -> None:
    """Let this process write at most 100 kB per file: the write fails as on a full disk, with another reason."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def assert_refused(process: subprocess.Popen[str], folder: Path, left: set[str], *words: str) -> None:
    _, text = process.communicate()
    assert process.returncode == 2, text
    assert "Traceback" not in text
    for word in ("error: ", "cannot be written", "try: ", *words):
        assert word in text, (word, text)
    assert {p.name for p in folder.iterdir()} == left


@pytest.mark.parametrize("before", [False, True], ids=["first export", "over a previous one"])
def test_a_write_that_fails_halfway_leaves_what_was_there(
    tmp_path: Path, versions: dict[str, Version], before: bool
) -> None:
    previous, following = versions.values()
    path = tmp_path / "vim.onnx"
    if before:
        previous.write(path)
    process = start(path, following.weights, "--no-verify", preexec_fn=small_files_only)
    assert_refused(
        process,
        tmp_path,
        {"vim.onnx", "vim.onnx.json"} if before else set(),
        "vim.onnx",
        "File too large",
    )
    if before:
        assert assert_whole(path, versions) == previous


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: int) -> Path:
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(options, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no privilege to mount a small file system here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def test_a_full_disk_is_named_and_leaves_nothing(
    full_disk: Callable[[int], Path], versions: dict[str, Version]
) -> None:
    folder = full_disk(128 << 10)
    _, following = versions.values()
    assert len(following.model) > 128 << 10
    process = start(folder / "vim.onnx", following.weights, "--no-verify")
    assert_refused(process, folder, set(), "No space left on device")
