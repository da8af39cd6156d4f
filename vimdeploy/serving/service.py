"""`vimdeploy serve`: one model over HTTP, on Starlette and uvicorn.

Both are small, kept well, and do what a server must: parsing, limits of connections, a graceful stop. A single model
needs little on top: bounded batching and the protocol. Other servers were not measured against it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from vimdeploy.errors import VimdeployError
from vimdeploy.predicting.predictor import Predictor
from vimdeploy.predicting.rows import Array
from vimdeploy.serving.batching import Batcher, OverloadedError
from vimdeploy.serving.protocol import IMAGE_FILE, InferRequest, infer_answer, parse_infer
from vimdeploy.version import __version__

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """What a client may ask of the server."""

    body: int = 32 << 20
    """Bytes of a request."""
    images: int = 64
    """Images of a request, and of a batch."""
    queue: int = 256
    """Images that may wait; a request beyond is answered with 503 at once."""
    delay: float = 0.002
    """Seconds that an image waits for others to run with."""
    timeout: float = 30.0
    """Seconds for the whole of a request: to arrive, to wait, to run."""


class _RefusalError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """The application of one open model."""

    def __init__(self, predictor: Predictor, name: str, limits: Limits) -> None:
        self._predictor, self._name, self._limits = predictor, name, limits
        self._version = predictor.fingerprint[:12]
        largest = min(limits.images, predictor.largest_batch)
        self._batcher = Batcher(predictor, largest=largest, delay=limits.delay, queue=limits.queue)
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "vimdeploy_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "vimdeploy_request_seconds", "Time from the first byte to the answer.", registry=self._registry
        )
        self._images = Counter("vimdeploy_images", "Images that were predicted.", registry=self._registry)
        waiting = Gauge("vimdeploy_images_waiting", "Images in the queue.", registry=self._registry)
        waiting.set_function(lambda: self._batcher.images_waiting)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        model = f"/v2/models/{self._name}"
        routes = [
            Route("/", self._page),
            Route("/predict", self._guarded(self._predict), methods=["POST"]),
            Route("/metrics", self._metrics),
            Route("/v2", self._server),
            *(Route(f"/v2/health/{what}", self._ready) for what in ("live", "ready")),
            *(Route(f"{path}/ready", self._ready) for path in (model, f"{model}/versions/{self._version}")),
            Route(model, self._metadata),
            Route(f"{model}/infer", self._guarded(self._infer), methods=["POST"]),
        ]
        return Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={404: _not_found, 405: _not_allowed, 500: _failed},
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self._batcher.work())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._batcher.close()

    def _guarded(self, handler: Handler) -> Handler:
        """Return a handler that answers within the time, in words, whatever the client sent."""

        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            try:
                response = await asyncio.wait_for(handler(request), self._limits.timeout)
            except _RefusalError as refusal:
                response = _error(refusal.status, str(refusal))
            except OverloadedError as error:
                response = _error(503, error.message, {"Retry-After": "1"})
            except VimdeployError as error:
                response = _error(400, str(error))
            except (TimeoutError, asyncio.TimeoutError):
                response = _error(504, f"No answer within {self._limits.timeout:g} seconds.")
            except ClientDisconnect:
                response = _error(400, "The client went away.")
            self._answers.labels(request.url.path, response.status_code).inc()
            self._seconds.observe(time.perf_counter() - started)
            return response

        return answer

    async def _body(self, request: Request) -> bytes:
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self._limits.body:
            raise _RefusalError(413, f"A request may have {self._limits.body} bytes.")
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._limits.body:
                raise _RefusalError(413, f"A request may have {self._limits.body} bytes.")
            parts.append(part)
        return b"".join(parts)

    async def _infer(self, request: Request) -> Response:
        header = request.headers.get("inference-header-content-length")
        if header is not None and not header.isdecimal():
            raise _RefusalError(400, "Inference-Header-Content-Length must be a number.")
        body = await self._body(request)
        asked = parse_infer(body, int(header) if header else None, self._predictor.manifest.input.name)
        images = await self._images_of(asked)
        outputs = await self._run(images)
        return JSONResponse(infer_answer(self._name, self._version, asked.id, outputs))

    async def _images_of(self, asked: InferRequest) -> Array:
        count = len(asked.files) if asked.tensor is None else len(asked.tensor)
        if count > self._limits.images:
            raise _RefusalError(413, f"A request may have {self._limits.images} images.")
        if asked.tensor is None:
            return await self._decoded(asked.files)
        wanted = self._predictor.input_shape
        if asked.tensor.shape[1:] != wanted:
            got = " x ".join(map(str, asked.tensor.shape[1:]))
            raise _RefusalError(400, f"An image is {' x '.join(map(str, wanted))} values, not {got}.")
        return asked.tensor

    async def _predict(self, request: Request) -> Response:
        images = await self._decoded((await self._body(request),))
        outputs = await self._run(images)
        row = self._predictor.row("", {name: values[0] for name, values in outputs.items()}).to_dict()
        del row["image"]
        return Response(json.dumps(row), media_type="application/json")

    async def _decoded(self, contents: tuple[bytes, ...]) -> Array:
        loop = asyncio.get_running_loop()
        names = [f"image {place}" for place in range(len(contents))]
        decoded = [
            loop.run_in_executor(None, self._predictor.decode, *pair) for pair in zip(names, contents, strict=True)
        ]
        return np.stack(await asyncio.gather(*decoded))

    async def _run(self, images: Array) -> dict[str, Array]:
        outputs = await self._batcher.run(images)
        self._images.inc(len(images))
        return outputs

    async def _page(self, _request: Request) -> Response:
        page = files("vimdeploy.serving").joinpath("page.html").read_text(encoding="utf-8")
        policy = (
            "default-src 'none'; connect-src 'self'; img-src blob:; "
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    async def _metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _server(self, _request: Request) -> Response:
        return JSONResponse({"name": "vimdeploy", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def _ready(self, _request: Request) -> Response:
        return JSONResponse({"ready": True})

    async def _metadata(self, _request: Request) -> Response:
        manifest = self._predictor.manifest
        outputs = self._predictor.output_shapes
        return JSONResponse(
            {
                "name": self._name,
                "versions": [self._version],
                "platform": "vimdeploy",
                "inputs": [
                    {
                        "name": manifest.input.name,
                        "datatype": "FP32",
                        "shape": [-1, *self._predictor.input_shape],
                    },
                    {"name": IMAGE_FILE, "datatype": "BYTES", "shape": [-1, 1]},
                ],
                "outputs": [{"name": n, "datatype": "FP32", "shape": [-1, *s]} for n, s in outputs.items()],
            }
        )


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


async def _not_found(_request: Request, _error_: Exception) -> Response:
    return _error(404, "There is nothing here.")


async def _not_allowed(_request: Request, _error_: Exception) -> Response:
    return _error(405, "Not with this method.")


async def _failed(_request: Request, error: Exception) -> Response:
    return _error(500, f"{type(error).__name__}: this is a bug in vimdeploy; the server goes on.")


def serve(predictor: Predictor, name: str, limits: Limits, *, host: str, port: int, connections: int) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were accepted get their answers first."""
    import uvicorn

    app: Any = Service(predictor, name, limits).app()
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        limit_concurrency=connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(limits.timeout) + 5,
        h11_max_incomplete_event_size=64 << 10,
    )
