"""Runs in the environment of tritonclient: talks to a server as the test tells it, and prints what came back.

Arguments: HTTP port, gRPC port, a folder with ``images.npy`` (tensors), ``files`` and, to stop a loop, ``stop``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as tg
import tritonclient.http as th

TASK, HTTP, GRPC, FOLDER = sys.argv[1], f"127.0.0.1:{sys.argv[2]}", f"127.0.0.1:{sys.argv[3]}", Path(sys.argv[4])
KINDS = {"http": th, "grpc": tg}
CLIENTS = {"http": th.InferenceServerClient(HTTP), "grpc": tg.InferenceServerClient(GRPC)}


def infer(kind: str, model: str, name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    tensor = KINDS[kind].InferInput(name, list(array.shape), dtype)
    tensor.set_data_from_numpy(array)
    return CLIENTS[kind].infer(model, [tensor]).as_numpy("logits")


def refusal(*arguments) -> str:
    try:
        infer(*arguments)
    except Exception as error:
        return str(error)
    return ""


def files(*paths: Path) -> np.ndarray:
    return np.array([[path.read_bytes()] for path in paths], dtype=np.object_)


def answers() -> None:
    images, paths = np.load(FOLDER / "images.npy"), sorted((FOLDER / "files").iterdir())
    found = {}
    for kind in KINDS:
        found[f"{kind}_tensor"] = np.concatenate(
            [infer(kind, "digits", "images", images[i : i + 1], "FP32") for i in range(len(images))]
        )
        found[f"{kind}_image"] = np.concatenate(
            [infer(kind, "digits_image", "image_file", files(p), "BYTES") for p in paths]
        )
        found[f"{kind}_batch"] = infer(kind, "digits", "images", images, "FP32")
    np.savez(FOLDER / "answers.npz", **found)
    classes = CLIENTS["http"].infer(
        "digits_image", [image_input(paths[0])], outputs=[th.InferRequestedOutput("logits", class_count=1)]
    )
    refusals = {
        "bad image": refusal("http", "digits_image", "image_file", np.array([[b"no image"]], np.object_), "BYTES"),
        "shape": refusal("http", "digits", "images", images[:1, :, :5], "FP32"),
        "type": refusal("grpc", "digits", "images", images[:1].astype(np.float64), "FP64"),
        "batch": refusal("http", "digits", "images", np.repeat(images[:1], 129, 0), "FP32"),
    }
    after = infer("grpc", "digits_image", "image_file", files(paths[0]), "BYTES")
    label = classes.as_numpy("logits").reshape(-1)[0].decode().rsplit(":", 1)[1]
    print(json.dumps({"label": label, "refusals": refusals, "alive": bool((after == found["grpc_image"][:1]).all())}))


def image_input(path: Path) -> th.InferInput:
    tensor = th.InferInput("image_file", [1, 1], "BYTES")
    tensor.set_data_from_numpy(files(path))
    return tensor


def loop() -> None:
    """Send requests until told to stop; print how many were answered, by version, and what failed."""
    images = np.load(FOLDER / "images.npy")[:1]
    versions: dict[str, int] = {}
    failed = []
    (FOLDER / "started").touch()
    while not (FOLDER / "stop").exists():
        tensor = th.InferInput("images", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images)
        try:
            answer = CLIENTS["http"].infer("digits", [tensor]).get_response()
            versions[answer["model_version"]] = versions.get(answer["model_version"], 0) + 1
        except Exception as error:
            failed.append(str(error))
    print(json.dumps({"versions": versions, "failed": failed}))


def schema() -> None:
    """Parse every configuration below the folder with the schema that the server is built from."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    found = {}
    for path in sorted(FOLDER.glob("*/config.pbtxt")):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        found[path.parent.name] = {"max_batch_size": config.max_batch_size, "platform": config.platform}
        found[path.parent.name]["backend"] = config.backend
    print(json.dumps(found))


{"answers": answers, "loop": loop, "schema": schema}[TASK]()
