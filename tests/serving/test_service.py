"""`vimdeploy serve` as a process: right answers, refusals in words, bounds that hold, and a stop that loses nothing."""

from __future__ import annotations

import base64
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import succeed
from fleet import clean_environment, write_digits
from triton_server import free_ports

import vimdeploy
from vimdeploy.artifacts.images import load_images
from vimdeploy.artifacts.manifest import read_manifest


class Server:
    """A server process on loopback."""

    def __init__(self, model: Path, *options: object) -> None:
        (self.port,) = free_ports(1)
        command = [sys.executable, "-m", "vimdeploy", "serve", str(model), "--port", str(self.port), *map(str, options)]
        self.process = subprocess.Popen(command, env=clean_environment(), stderr=subprocess.PIPE, text=True)
        for _ in range(600):
            if self.process.poll() is not None or self.status("/v2/health/ready") == 200:
                break
            time.sleep(0.05)

    def ask(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str = ""
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        is_json = answer.getheader("content-type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content.decode()

    def status(self, path: str) -> int:
        try:
            return self.ask(path)[0]
        except OSError:
            return 0

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=60)
        return err


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_digits(tmp_path_factory.mktemp("photos"), 8)


@pytest.fixture(scope="module")
def server(digits: Path) -> Iterator[Server]:
    running = Server(digits, "--body-mb", 1)
    yield running
    assert "Traceback" not in running.stop()


INFER = "/v2/models/digits/infer"


def tensor_body(images: np.ndarray, **changes: Any) -> bytes:
    tensor = {"name": "images", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
    return json.dumps({"id": "seven", "inputs": [tensor | changes]}).encode()


def test_tensors_and_files_give_what_the_session_gives_bit_for_bit(server, digits, photos):
    images = load_images(photos, read_manifest(digits).preprocessing)
    with vimdeploy.load(digits) as session:
        expected = session(images)
    status, answer = server.ask(INFER, tensor_body(images))
    assert (status, answer["id"]) == (200, "seven")
    np.testing.assert_array_equal(np.array(answer["outputs"][0]["data"], np.float32).reshape(8, 10), expected)
    raw = images.tobytes()
    head = {"inputs": [{"name": "images", "datatype": "FP32", "shape": list(images.shape)}]}
    head["inputs"][0]["parameters"] = {"binary_data_size": len(raw)}
    text = json.dumps(head).encode()
    binary = server.ask(INFER, text + raw, {"Inference-Header-Content-Length": str(len(text))})
    assert binary[1]["outputs"] == answer["outputs"]
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in photos]
    files = {"inputs": [{"name": "image_file", "datatype": "BYTES", "shape": [8, 1], "data": encoded}]}
    assert server.ask(INFER, json.dumps(files).encode())[1]["outputs"] == answer["outputs"]


def test_the_page_asks_what_predict_answers(server, digits, photos):
    status, row = server.ask("/predict", photos[0].read_bytes())
    (line,) = succeed("predict", digits, photos[0], "--json").json()
    assert status == 200
    assert row["classes"] == line["classes"]
    status, page = server.ask("/")
    assert status == 200
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "src=" not in page


def test_metadata_and_metrics_are_there(server):
    assert server.ask("/v2")[1]["name"] == "vimdeploy"
    described = server.ask("/v2/models/digits")[1]
    assert described["inputs"][0] == {"name": "images", "datatype": "FP32", "shape": [-1, 3, 32, 32]}
    assert described["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    assert "vimdeploy_request_seconds_count" in server.ask("/metrics")[1]


BIG = b"x" * (2 << 20)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "words"),
    [
        ("/predict", b"no image", {}, 400, "cannot be read as an image"),
        ("/predict", b"", {}, 400, "cannot be read as an image"),
        ("/predict", BIG, {}, 413, "bytes"),
        (INFER, b"{", {}, 400, "not JSON"),
        (INFER, b"[" * 100_000, {}, 400, "not JSON"),
        (INFER, b"{}", {}, 400, "inputs"),
        (INFER, tensor_body(np.zeros((1, 3, 31, 32))), {}, 400, "3 x 32 x 32"),
        (INFER, tensor_body(np.zeros((1, 3, 32, 32)), datatype="INT8"), {}, 400, "FP32"),
        (INFER, tensor_body(np.zeros((1, 3, 32, 32)), name="wrong"), {}, 400, "wrong"),
        (INFER, tensor_body(np.zeros((1, 3, 32, 32)), shape=[2, 3, 32, 32]), {}, 400, "values"),
        (INFER, tensor_body(np.zeros((1, 3, 32, 32)), shape=[-1]), {}, 400, "shape"),
        (INFER, b"{}", {"Inference-Header-Content-Length": "99"}, 400, "Inference-Header"),
        ("/v2/models/other/infer", b"{}", {}, 404, "nothing"),
    ],
)
def test_a_body_of_lies_is_refused_in_words_and_the_server_is_alive(server, path, body, headers, status, words):
    found, answer = server.ask(path, body, headers)
    assert found == status
    assert words in answer["error"]
    assert server.status("/v2/health/live") == 200


def test_hundreds_of_malformed_requests_leave_it_alive(server, photos):
    """Mutations of a good request: each gets an answer that says so, none a 500, and the next good one is served."""
    draw = random.Random(0)
    good = tensor_body(np.zeros((1, 3, 32, 32), np.float32))[:2000] + b"]}"
    good_file = photos[0].read_bytes()

    def mutated(_number: int) -> int:
        path, body = draw.choice([(INFER, bytearray(good)), ("/predict", bytearray(good_file))])
        for _ in range(draw.randint(1, 20)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        return server.ask(path, bytes(body[: draw.randrange(len(body))]))[0]

    with ThreadPoolExecutor(4) as pool:
        statuses = set(pool.map(mutated, range(400)))
    assert statuses <= {200, 400, 413}
    assert server.ask("/predict", good_file)[0] == 200


def test_raw_bytes_that_are_no_http_leave_it_alive(server):
    for content in (b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST /predict HTTP/1.1\r\nContent-Length: -4\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(content)
    assert server.status("/v2/health/live") == 200


def test_overload_is_shed_with_503_and_passes(digits, photos):
    running = Server(digits, "--queue", 4, "--images", 2)
    content = photos[0].read_bytes()
    with ThreadPoolExecutor(48) as pool:
        statuses = list(pool.map(lambda _: running.ask("/predict", content)[0], range(400)))
    assert set(statuses) == {200, 503}
    assert running.ask("/predict", content)[0] == 200
    running.stop()


def test_a_client_that_sends_half_a_body_is_answered_in_time(digits):
    running = Server(digits, "--timeout", 0.5)
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        assert client.recv(100).startswith(b"HTTP/1.1 504")
    assert running.status("/v2/health/live") == 200
    running.stop()


def test_a_stop_under_load_loses_no_request_that_was_taken(digits, photos):
    running = Server(digits)
    content = photos[0].read_bytes()
    outcomes: list[str] = []

    def client() -> None:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
            try:
                connection.connect()
            except OSError:
                return
            try:
                connection.request("POST", "/predict", content)
                outcomes.append(str(connection.getresponse().status))
            except (ConnectionResetError, BrokenPipeError):
                outcomes.append("not taken")  # it was still in the kernel's queue when the socket was closed
            except http.client.RemoteDisconnected:
                outcomes.append("lost")
            finally:
                connection.close()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for one in clients:
        one.start()
    time.sleep(1)
    assert "Traceback" not in running.stop()
    for one in clients:
        one.join()
    assert outcomes.count("200") > 20
    assert set(outcomes) <= {"200", "not taken"}
    assert outcomes.count("not taken") <= 4


def test_a_model_that_is_replaced_while_serving_changes_nothing_until_the_next_start(digits, photos, tmp_path):
    for name in ("digits.onnx", "digits.onnx.json"):
        (tmp_path / name).write_bytes(digits.with_name(name).read_bytes())
    running = Server(tmp_path / "digits.onnx")
    before = running.ask("/predict", photos[0].read_bytes())
    (tmp_path / "digits.onnx").write_bytes(b"another file")
    assert running.ask("/predict", photos[0].read_bytes()) == before
    running.stop()
    again = Server(tmp_path / "digits.onnx")
    assert again.process.wait(timeout=60) == 2
    assert "digits.onnx" in again.process.stderr.read()
    again.process.stderr.close()
