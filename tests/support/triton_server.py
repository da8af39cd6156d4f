"""The real tritonserver of the nvidia-pytriton wheel, and its client, in an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path
from typing import Any

from fleet import ROOT, SITES, environment

# The wheel asks for much that its server binary does not need.
REQUIREMENTS = ["--no-deps nvidia-pytriton==0.7.0", "tritonclient[http,grpc]==2.73.0", "numpy<2"]


def python_path() -> list[str]:
    """Return what the server's python backend imports from; its stub is built for numpy 1, which comes first."""
    python = environment("triton", REQUIREMENTS, layered=False)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return [str(ROOT), str(python.parents[1] / "lib" / f"python{version}" / "site-packages"), *SITES]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]
    finally:
        for probe in sockets:
            probe.close()


class TritonServer:
    """A server process on loopback; models are loaded when asked for."""

    def __init__(self, repository: Path, scratch: Path, *models: str) -> None:
        self.python = environment("triton", REQUIREMENTS, layered=False)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        site = self.python.parents[1] / "lib" / f"python{version}" / "site-packages"
        wheel = site / "pytriton" / "tritonserver"
        backends = scratch / "backends"
        shutil.copytree(wheel / "backends", backends)
        # The stub embeds a Python: the one that runs the tests.
        shutil.copy(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
        self.http, self.grpc = free_ports(2)
        libraries = [str(site / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
        self.log = scratch / "triton.log"
        command = [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            "--http-address=127.0.0.1",
            f"--http-port={self.http}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.grpc}",
            "--allow-metrics=false",
            "--exit-on-error=false",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in models),
        ]
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        env |= {"LD_LIBRARY_PATH": ":".join(libraries), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, models: list[str], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not all(self.status(f"v2/models/{model}/ready") == 200 for model in models):
            text = self.log.read_text()
            if self._process.poll() is not None or "load failed" in text or time.monotonic() > deadline:
                raise AssertionError(f"tritonserver is not ready:\n{self.log.read_text()[-6000:]}")
            time.sleep(0.1)

    def status(self, path: str, body: dict[str, Any] | None = None) -> int:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/{path}", data=data, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)
