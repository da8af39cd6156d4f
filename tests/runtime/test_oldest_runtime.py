"""The oldest ONNX Runtime and the oldest Python that README promises run what is exported today.

Two environments: Python 3.10 with the oldest ONNX Runtime and nothing of torch, as a deployment host has it, and this
Python with the oldest ONNX Runtime laid over its own, for the demo, which exports.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import vmamba_cases
from goldens import TOLERANCE, golden
from native import locked

from vimdeploy import contract
from vimdeploy.graph.export import export_onnx
from vimdeploy.graph.policy import FP16
from vimdeploy.graph.precision import convert_model
from vimdeploy.native.locate import cache_folder

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()
OLDEST = re.search(r'ort = \["onnxruntime>=([\d.]+)"\]', PROJECT)[1]
OLDEST_OPSETS = range(contract.MIN_OPSET, 22)
"""What the oldest ONNX Runtime reads; the others need a newer one."""
_RUN = """
import sys, numpy as np, onnxruntime, vimdeploy
for path in sys.argv[1:]:
    with np.load(path + ".npz") as file:
        images = file["images"]
    with vimdeploy.load(path) as session:
        outputs = session.run({session.inputs[0].name: images})
    np.savez(path + ".out.npz", *outputs.values())
print(sys.version_info[:2], onnxruntime.__version__)
"""


def pip(python, *arguments):
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def python310():
    """Return a Python 3.10: on PATH, or one of pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for candidate in filter(None, (shutil.which("python3.10"), *sorted(root.glob("3.10.*/bin/python")))):
        if subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    pytest.fail(
        "Python 3.10, the oldest that is promised, is missing: install it, or pyenv install 3.10", pytrace=False
    )
    return None


def made_once(name, make):
    """Return a folder of the cache that ``make(folder)`` filled, for this state of the project's requirements."""
    key = hashlib.sha256((PROJECT + (ROOT / "constraints.txt").read_text()).encode()).hexdigest()[:12]
    folder = cache_folder().parent / "oldest-runtime" / f"{name}-{key}"
    with locked(folder.parent):
        if not (folder / "complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            (folder / "complete").touch()
    return folder


@pytest.fixture(scope="session")
def deployment_host():
    """Python of an environment made by Python 3.10: what `pip install 'vimdeploy[ort]'` brings, the runtime oldest."""

    def make(folder):
        subprocess.run([python310(), "-m", "venv", folder], check=True)
        requirements = re.search(r"^dependencies = \[\n(.*?)^\]", PROJECT, flags=re.DOTALL | re.MULTILINE)[1]
        wanted = [line.strip().rstrip(",").strip('"') for line in requirements.splitlines()]
        constraints = folder / "constraints.txt"
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        constraints.write_text("\n".join(line for line in lines if not line.startswith("onnxruntime==")))
        pip(folder / "bin" / "python", "--constraint", constraints, f"onnxruntime=={OLDEST}", *wanted)

    return made_once("python3.10", make) / "bin" / "python"


def overlay_of(version):
    """Return a folder with an ONNX Runtime for this Python, to be laid over its own packages."""
    arguments = ("--no-deps", f"onnxruntime=={version}")
    return made_once(f"overlay-{version}", lambda folder: pip(sys.executable, "--target", folder, *arguments))


@pytest.fixture(scope="session")
def overlay():
    """Folder with the oldest ONNX Runtime for this Python."""
    return overlay_of(OLDEST)


def run(python, *arguments, folder, paths=(ROOT,)):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(python), *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def computed(python, folder, models):
    """Return the outputs of {name: (model, images)} as ``python`` computes them."""
    for name, (model, images) in models.items():
        onnx.save(model, folder / f"{name}.onnx")
        np.savez(folder / f"{name}.onnx.npz", images=images)
    files = [folder / f"{name}.onnx" for name in models]
    done = run(python, "-c", _RUN, *files, folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"(3, 10) {OLDEST}"
    return {name: np.load(f"{path}.out.npz")["arr_0"] for name, path in zip(models, files, strict=True)}


def test_the_goldens_of_vim_and_vmamba_pass_and_a_half_precision_file_runs(deployment_host, exported, tmp_path):
    vim = golden("cls_tiny").arrays
    model, vmamba = vmamba_cases.golden("vmamba_v05")
    half, _ = convert_model(exported("cls_tiny"), FP16)
    found = computed(
        deployment_host,
        tmp_path,
        {
            "vim": (exported("cls_tiny"), vim["images"]),
            "vmamba": (export_onnx(model), vmamba["images"]),
            "half": (half, vim["images"]),
        },
    )
    np.testing.assert_allclose(found["vim"], vim["logits"], **TOLERANCE)
    np.testing.assert_allclose(found["vmamba"], vmamba["logits"], **TOLERANCE)
    error = np.sqrt(np.mean((found["half"] - vim["logits"]) ** 2) / np.mean(vim["logits"] ** 2))
    assert 1e-5 < error < 5e-3  # half precision it is, and within every recipe's contract


def test_the_opsets_that_readme_promises_for_it_load(deployment_host, exported, tmp_path):
    vim = golden("cls_tiny").arrays
    models = {f"opset{n}": (exported("cls_tiny", opset=n), vim["images"]) for n in (*OLDEST_OPSETS,)}
    for name, logits in computed(deployment_host, tmp_path, models).items():
        np.testing.assert_allclose(logits, vim["logits"], **TOLERANCE, err_msg=name)
    readme = (ROOT / "README.md").read_text()
    assert f"ONNX Runtime {OLDEST} on, up to opset {OLDEST_OPSETS[-1]}" in readme


def test_a_file_that_is_newer_than_the_runtime_is_called_that(deployment_host, exported, tmp_path):
    onnx.save(exported("cls_tiny", opset=contract.MAX_OPSET), tmp_path / "new.onnx")
    done = run(deployment_host, "-c", "import vimdeploy; vimdeploy.load('new.onnx')", folder=tmp_path)
    assert f"new.onnx: has opset {contract.MAX_OPSET}, which is newer than ONNX Runtime {OLDEST} reads." in done.stderr
    assert "pip install --upgrade onnxruntime" in done.stderr
    assert "Export the model again" not in done.stderr


def test_the_demo_runs(overlay, deployment_host, tmp_path):
    done = run(sys.executable, "-m", "vimdeploy", "demo", "--json", folder=tmp_path, paths=(overlay, ROOT))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["agreement"] == 1.0
    which = run(
        sys.executable, "-c", "import onnxruntime as o; print(o.__version__)", folder=tmp_path, paths=(overlay,)
    )
    assert which.stdout.strip() == OLDEST
    onnx_file = tmp_path / result["path"]
    digit = tmp_path / result["predictions"][0]["image"]
    done = run(deployment_host, "-m", "vimdeploy", "predict", onnx_file, digit, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["classes"][0]["label"] == digit.stem[-1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel as `pip wheel .` builds it on a machine with a C++ compiler."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_carries_the_native_ops_to_a_host_without_a_compiler(wheel, deployment_host, exported, tmp_path):
    assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    installed = tmp_path / "site"
    pip(deployment_host, "--no-deps", "--target", installed, wheel)
    onnx.save(exported("cls_tiny"), tmp_path / "m.onnx")
    arrays = golden("cls_tiny").arrays
    np.save(tmp_path / "images.npy", arrays["images"])
    code = """
import numpy as np, vimdeploy
print(vimdeploy.ops_library())
with vimdeploy.load("m.onnx", ops="native") as session:
    np.save("logits.npy", session(np.load("images.npy")))
"""
    clean = {"PATH": "", "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [deployment_host, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installed / "vimdeploy" / "_lib" / "libvimdeploy_ops.so")
    assert not (tmp_path / "cache").exists()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), arrays["logits"], **TOLERANCE)


@pytest.mark.parametrize("version", [OLDEST, "1.23.2"])
def test_one_binary_of_the_native_ops_serves_old_and_new_runtimes(version, exported, tmp_path):
    onnx.save(exported("cls_tiny"), tmp_path / "m.onnx")
    arrays = golden("cls_tiny").arrays
    np.save(tmp_path / "images.npy", arrays["images"])
    code = """
import numpy as np, onnxruntime, vimdeploy
with vimdeploy.load("m.onnx", ops="native") as session:
    np.save("logits.npy", session(np.load("images.npy")))
print(onnxruntime.__version__)
"""
    done = run(sys.executable, "-c", code, folder=tmp_path, paths=(overlay_of(version), ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == version
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), arrays["logits"], **TOLERANCE)
