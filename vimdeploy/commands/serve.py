"""`vimdeploy serve` as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vimdeploy.needs import require
from vimdeploy.predicting.predictor import Predictor


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    top: int = 5,
    images: int = 64,
    queue: int = 256,
    delay_ms: float = 2.0,
    timeout: float = 30.0,
    body_mb: int = 32,
    connections: int = 512,
    ops: str = "auto",
    opened: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a model over HTTP until SIGTERM or Ctrl-C: the Open Inference Protocol, and a page to drop images on.

    Args:
        model: ONNX file or plan, with its manifest beside it.
        host: Address to listen on.
        port: Port to listen on.
        name: Of the model in addresses; default: the file's.
        top: Classes that /predict lists.
        images: Images of a request, and of a batch.
        queue: Images that may wait; beyond, requests get 503.
        delay_ms: How long an image waits for others.
        timeout: Seconds for a whole request.
        body_mb: Megabytes of a request.
        connections: Connections at the same time; beyond, 503.
        ops: What computes the custom ops: native, body, or auto.
        opened: Told the model's name in addresses once it is open, before anything listens.

    Raises:
        MissingDependencyError: a package of the server is not installed.
        ArtifactError: model or manifest is missing, corrupt or foreign.

    """
    require("serve")
    from vimdeploy.serving import service

    path = Path(model)
    known = name or path.stem
    limits = service.Limits(body_mb << 20, images, queue, delay_ms / 1000, timeout)
    with Predictor(path, top=top, ops=ops) as predictor:
        opened(known)
        service.serve(predictor, known, limits, host=host, port=port, connections=connections)
