"""Predicting from and into S3: a real server process (moto) on loopback, killed runs, and buckets that refuse."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fleet import clean_environment, environment, write_digits
from pyarrow.fs import FileSystem, FileType

# Its extra [server] asks for every other service's dependencies too.
MOTO = ["moto[s3]==5.2.5", "flask", "flask-cors"]
IMAGES = 60
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Store:
    """A server of buckets."""

    def __init__(self, port: int) -> None:
        self.options = f"endpoint_override=127.0.0.1:{port}&scheme=http&allow_bucket_creation=true"
        self.files, _ = FileSystem.from_uri(self.uri("photos"))

    def uri(self, path: str) -> str:
        return f"s3://{path}?{self.options}"

    def put(self, path: str, content: bytes) -> None:
        with self.files.open_output_stream(path) as stream:
            stream.write(content)

    def rows(self, folder: str) -> list[dict[str, object]]:
        return pq.read_table(folder, filesystem=self.files).to_pylist()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    python, port = environment("moto", MOTO, layered=False), free_port()
    server = subprocess.Popen(
        [str(python.parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        store = Store(port)
        for bucket in ("photos", "rows"):
            store.files.create_dir(bucket)
        for path in write_digits(tmp_path_factory.mktemp("photos"), IMAGES):
            store.put(f"photos/day/{path.name}", path.read_bytes())
        store.put("photos/day/zz_broken.png", b"no image")
        yield store
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=20)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vimdeploy", "predict", *map(str, arguments)]
    env = clean_environment(**KEYS)
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def test_a_bucket_is_predicted_into_a_bucket_through_kills(store: Store, digits: Path) -> None:
    arguments = (digits, store.uri("photos/day"), "-o", store.uri("rows/killed"), "--shard-rows", 10)
    for _ in range(2):
        process = start(*arguments)
        seen = len(finished(store, "rows/killed"))
        while process.poll() is None and len(finished(store, "rows/killed")) <= seen:
            time.sleep(0.02)
        process.kill()
        process.communicate()
    out, _ = finish(start(*arguments, "--json"))
    summary = json.loads(out)
    assert summary["rows"] == IMAGES + 1
    assert summary["resumed"] >= 20, "two runs were killed after a shard each"
    rows = store.rows("rows/killed")
    assert sorted({str(row["image"]) for row in rows}) == sorted(str(row["image"]) for row in rows)
    assert len(rows) == IMAGES + 1
    assert all(str(row["image"]).startswith("s3://photos/day/") for row in rows)
    assert not any("endpoint_override" in str(row["image"]) for row in rows)
    assert [row["image"] for row in rows if row["error"]] == ["s3://photos/day/zz_broken.png"]


def finished(store: Store, folder: str) -> list[str]:
    from pyarrow.fs import FileSelector

    found = store.files.get_file_info(FileSelector(folder, allow_not_found=True))
    return [info.base_name for info in found if info.type is FileType.File and info.base_name.endswith(".parquet")]


def test_a_local_folder_is_predicted_into_a_bucket_and_a_glob_in_a_bucket_to_the_screen(
    store: Store, digits: Path, tmp_path: Path
) -> None:
    write_digits(tmp_path / "photos", 5)
    finish(start(digits, tmp_path / "photos", "-o", store.uri("rows/local")))
    assert len(store.rows("rows/local")) == 5
    out, _ = finish(start(digits, store.uri("photos/day/0000[0-4]*"), "--format", "ndjson", "--top", 1))
    local = [json.loads(line)["classes"] for line in out.splitlines()]
    assert [c[0]["probability"] for c in local] == [row["probability"] for row in store.rows("rows/local")]


def test_a_bucket_that_is_not_there_and_one_that_refuses_are_told_in_words(store: Store, digits: Path) -> None:
    _, err = finish(start(digits, store.uri("photos/nowhere")), 2)
    assert "photos/nowhere" in err
    plain = store.options.replace("&allow_bucket_creation=true", "")
    _, err = finish(start(digits, store.uri("photos/day"), "-o", f"s3://no-such-bucket/x?{plain}"), 2)
    assert "no-such-bucket" in err
    assert "cannot be" in err
    _, err = finish(start(digits, f"s3://photos/day?endpoint_override=127.0.0.1:{free_port()}&scheme=http"), 2)
    assert "cannot be read" in err


def test_a_shard_that_disappears_ends_in_words_and_the_run_goes_on_once_it_is_back(
    store: Store, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text(f"{store.uri('photos/day/00000_is_9.png')}\n{store.uri('photos/gone.tar')}\n")
    _, err = finish(start(digits, tmp_path / "list.txt", "-o", tmp_path / "out", "--shard-rows", 1), 2)
    assert "gone.tar" in err
    assert (tmp_path / "out" / "part-00000.parquet").exists()
