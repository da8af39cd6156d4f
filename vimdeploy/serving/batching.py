"""Requests joined into batches: bounded in number, in waiting and in time."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vimdeploy.errors import VimdeployError
from vimdeploy.predicting.predictor import Predictor
from vimdeploy.predicting.rows import Array


class OverloadedError(VimdeployError):
    """More is waiting than the queue takes."""


@dataclass
class _Waiting:
    images: Array
    answer: asyncio.Future[dict[str, Array]]


class Batcher:
    """Runs a model on batches of what several requests sent.

    Args:
        predictor: the open model.
        largest: images that run together.
        delay: seconds that the first image of a batch waits for others.
        queue: images that may wait; a request beyond is refused at once.

    """

    def __init__(self, predictor: Predictor, *, largest: int, delay: float, queue: int) -> None:
        self._predictor, self._largest, self._delay, self._most = predictor, largest, delay, queue
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._held: _Waiting | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.images_waiting = 0

    async def run(self, images: Array) -> dict[str, Array]:
        """Return the outputs (N, ...) of images (N, C, H, W); OverloadedError where the queue is full."""
        if self.images_waiting + len(images) > self._most and self.images_waiting:
            raise OverloadedError(f"{self.images_waiting} images are waiting already: try again later.")
        waiting = _Waiting(images, asyncio.get_running_loop().create_future())
        self.images_waiting += len(images)
        self._waiting.put_nowait(waiting)
        return await waiting.answer

    async def work(self) -> None:
        """Serve for ever; one task of the server."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [waiting for waiting in await self._collect() if not waiting.answer.done()]
            if not batch:
                continue
            try:
                images = np.concatenate([waiting.images for waiting in batch])
                outputs = await loop.run_in_executor(self._thread, self._predictor.run, images)
            except Exception as error:  # a failed batch is the error of its requests; the server goes on
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                continue
            start = 0
            for waiting in batch:
                rows = slice(start, start + len(waiting.images))
                start = rows.stop
                if not waiting.answer.done():  # its client may have gone
                    waiting.answer.set_result({name: values[rows] for name, values in outputs.items()})

    async def _collect(self) -> list[_Waiting]:
        first = self._held or await self._waiting.get()
        self._held = None
        batch, rows = [first], len(first.images)
        deadline = asyncio.get_running_loop().time() + self._delay
        while rows < self._largest:
            remaining = deadline - asyncio.get_running_loop().time()
            try:
                # With nothing left to wait for, what is there already still joins.
                following = (
                    self._waiting.get_nowait()
                    if remaining <= 0
                    else await asyncio.wait_for(self._waiting.get(), remaining)
                )
            except (asyncio.QueueEmpty, asyncio.TimeoutError):
                break
            if rows + len(following.images) > self._largest:
                self._held = following
                break
            batch.append(following)
            rows += len(following.images)
        self.images_waiting -= rows
        return batch

    def close(self) -> None:
        """End the thread of the model."""
        self._thread.shutdown(wait=True)
