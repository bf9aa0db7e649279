"""Dynamic batching: requests that arrive together share one run of the model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vitexport.server.limits import BatchSettings
from vitexport.tensors import Array

__all__ = ["Batcher"]

Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class _Item:
    rows: Array
    outputs: asyncio.Future[Outputs]
    arrived: float


class Batcher:
    """Collects rows until a batch is full or its oldest row has waited long enough, then runs the model in a thread.

    The queue itself is not bounded: whoever submits was admitted before (``Service.admit``).

    Args:
        run: Runs the model on rows ``[N, ...]``; called from a thread, from as many at once as there are workers.
        settings: Batch size, deadline and workers.
        on_batch: Called with the size of each batch before it runs.
    """

    def __init__(
        self, run: Callable[[Array], Outputs], settings: BatchSettings, on_batch: Callable[[int], None]
    ) -> None:
        self._run = run
        self._settings = settings
        self._on_batch = on_batch
        self._waiting: deque[_Item] = deque()
        self._changed = asyncio.Condition()
        self._closing = False
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="infer")
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the workers, in the running event loop."""
        self._workers = [asyncio.create_task(self._worker()) for _ in range(self._settings.workers)]

    async def stop(self) -> None:
        """Answer everything submitted so far, then stop."""
        async with self._changed:
            self._closing = True
            self._changed.notify_all()
        await asyncio.gather(*self._workers)
        self._pool.shutdown()

    async def submit(self, rows: Array) -> Outputs:
        """Run the model on rows, together with whatever else is waiting.

        Raises:
            InferenceError: The model failed.
        """
        loop = asyncio.get_running_loop()
        item = _Item(rows, loop.create_future(), loop.time())
        async with self._changed:
            self._waiting.append(item)
            self._changed.notify()
        return await item.outputs

    async def _worker(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next()
            if batch is None:
                return
            self._on_batch(sum(len(item.rows) for item in batch))
            done = loop.run_in_executor(self._pool, self._run_batch, batch)
            await asyncio.wait([done])
            error = done.exception()
            for index, item in enumerate(batch):
                if item.outputs.done():
                    continue  # its client has gone
                if error is not None:
                    item.outputs.set_exception(error)
                else:
                    item.outputs.set_result(done.result()[index])

    async def _next(self) -> list[_Item] | None:
        """Wait for a batch; None when the batcher stops and nothing is left."""
        loop = asyncio.get_running_loop()
        async with self._changed:
            while True:
                await self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
                if not self._waiting:
                    return None
                remaining = self._waiting[0].arrived + self._settings.max_delay - loop.time()
                if self._closing or remaining <= 0 or self._ready() >= self._settings.max_batch:
                    return self._take()
                try:
                    await asyncio.wait_for(self._changed.wait(), remaining)
                except asyncio.TimeoutError:
                    continue

    def _ready(self) -> int:
        return sum(len(item.rows) for item in self._waiting)

    def _take(self) -> list[_Item]:
        """Take items of one shape until the batch is full; one that is larger than a batch goes alone."""
        taken = [self._waiting.popleft()]
        size = len(taken[0].rows)
        while self._waiting:
            item = self._waiting[0]
            if size + len(item.rows) > self._settings.max_batch or item.rows.shape[1:] != taken[0].rows.shape[1:]:
                break
            taken.append(self._waiting.popleft())
            size += len(item.rows)
        return taken

    def _run_batch(self, batch: Sequence[_Item]) -> list[Outputs]:
        if len(batch) == 1:
            return [self._run(batch[0].rows)]
        outputs = self._run(np.concatenate([item.rows for item in batch]))
        parts: list[Outputs] = []
        start = 0
        for item in batch:
            end = start + len(item.rows)
            parts.append({name: array[start:end] for name, array in outputs.items()})
            start = end
        return parts
