"""What every protocol of the server calls: bytes or tensors in, results out; admission, decoding, batching."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from vitexport.errors import BundleError, FeedMismatchError, ImageError
from vitexport.inputs.images import decode_image
from vitexport.machine import usable_cores
from vitexport.predict.predictor import Predictor
from vitexport.server.batching import Batcher
from vitexport.server.fetch import fetch_image
from vitexport.server.limits import BatchSettings, Limits, RequestError
from vitexport.server.metrics import Metrics
from vitexport.tensors import Array, TensorSpec, batch_limit, check_feeds

__all__ = ["ImageSource", "Service"]

# The bytes of an image file, or the URL of one.
ImageSource = bytes | str


class Service:
    """A model with its queue.

    Attributes:
        predictor: The model.
        limits: What is accepted.
        metrics: What is counted.
        draining: Set when the server stops: it answers what comes, and tells clients to go elsewhere.
    """

    def __init__(self, predictor: Predictor, limits: Limits, batching: BatchSettings) -> None:
        self.predictor = predictor
        self.limits = limits
        self.metrics = Metrics(predictor.name, predictor.version, predictor.runtime.name, predictor.variant)
        self.draining = False
        self.max_batch = batch_limit(predictor.tensor) or batching.max_batch
        settings = BatchSettings(self.max_batch, batching.max_delay, batching.workers if predictor.concurrent else 1)
        self._batcher = Batcher(self._run, settings, self.metrics.batch_images.observe)
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(8, thread_name_prefix="fetch")
        self._queued = 0
        self._body_bytes = 0

    def start(self) -> None:
        """Start batching, in the running event loop."""
        self._batcher.start()

    async def stop(self) -> None:
        """Answer what was accepted, then release everything."""
        await self._batcher.stop()
        self._decoders.shutdown()
        self._fetchers.shutdown(cancel_futures=True)
        self.predictor.close()

    def _run(self, rows: Array) -> Mapping[str, Array]:
        with self.metrics.inference_seconds.time():
            return self.predictor.run(rows, self.max_batch)

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold a place for ``images`` in the queue.

        Raises:
            RequestError: 413 when a request holds too many, 429 when the queue is full.
        """
        if images > self.limits.images:
            raise RequestError(
                413,
                f"Expected at most {self.limits.images} images per request, found {images}.",
                "Send several requests.",
            )
        if self._queued + images > self.limits.queue:
            raise RequestError(
                429,
                f"The queue is full: {self._queued} of {self.limits.queue} images are waiting.",
                "Try again in a second.",
                retry_after=1,
            )
        self._queued += images
        self.metrics.queued.set(self._queued)
        try:
            yield
        finally:
            self._queued -= images
            self.metrics.queued.set(self._queued)

    def hold_bytes(self, count: int) -> None:
        """Count ``count`` more (or, negative, fewer) bytes of request bodies in memory.

        Raises:
            RequestError: 429 when all bodies together would be too large.
        """
        if count > 0 and self._body_bytes + count > self.limits.total_bytes:
            raise RequestError(
                429,
                f"All requests together may hold {self.limits.total_bytes:,} bytes; that limit is reached.",
                "Try again in a second.",
                retry_after=1,
                close=True,
            )
        self._body_bytes += count
        self.metrics.body_bytes.set(self._body_bytes)

    async def predict(self, sources: Sequence[ImageSource], names: Sequence[str], top: int) -> list[list[Any]]:
        """Answer images.

        Args:
            sources: Image files or URLs.
            names: How an error message calls each.
            top: Classes per image.

        Returns:
            Per image: ``{"label", "score"}`` objects, best first; or the numbers of its feature vector.

        Raises:
            RequestError: An image cannot be used, there are too many, or the queue is full.
            InferenceError: The model failed.
        """
        if not sources:
            raise RequestError(400, "Expected at least one image, found none.", "Send an image.")
        self._require_vectors()
        with self.admit(len(sources)):
            # Every image is prepared before any error is raised, so that nothing runs on unattended.
            prepared = await asyncio.gather(
                *(self._prepare(source, name) for source, name in zip(sources, names, strict=True)),
                return_exceptions=True,
            )
            rows: list[Array] = []
            for entry in prepared:
                if isinstance(entry, BaseException):
                    raise entry
                rows.append(entry)
            outputs = await asyncio.gather(*(self._batcher.submit(row[None]) for row in rows))
            results = [self._result(entry, top) for entry in outputs]
        self.metrics.images.inc(len(results))
        return results

    def _require_vectors(self) -> None:
        """Refuse images where the model's answer is no vector, such as the maps of a segmentation model."""
        try:
            assert self.predictor.output
        except BundleError as error:
            raise RequestError(400, error.message, error.hint) from error

    async def _prepare(self, source: ImageSource, name: str) -> Array:
        loop = asyncio.get_running_loop()
        if isinstance(source, bytes):
            return await loop.run_in_executor(self._decoders, self._decode, source, name)
        data = await loop.run_in_executor(self._fetchers, fetch_image, source, self.limits)
        self.hold_bytes(len(data))
        try:
            return await loop.run_in_executor(self._decoders, self._decode, data, name)
        finally:
            self.hold_bytes(-len(data))

    def _decode(self, data: bytes, name: str) -> Array:
        try:
            return self.predictor.prepare(decode_image(data, name=name, max_pixels=self.limits.pixels))
        except ImageError as error:
            raise RequestError(400, error.message, error.hint) from error

    def _result(self, outputs: Mapping[str, Array], top: int) -> list[Any]:
        result = self.predictor.result(self.predictor.vectors(outputs)[0], top)
        return [prediction.to_dict() for prediction in result.predictions] or list(result.features)

    async def infer(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the model on tensors as they are.

        Raises:
            RequestError: The tensors do not fit the model, there are too many rows, or the queue is full.
            InferenceError: The model failed.
        """
        tensor = self.predictor.tensor
        array = feeds.get(tensor.name)
        rows = len(array) if array is not None and array.ndim else 1
        fixed = batch_limit(tensor)
        try:
            # A fixed batch is filled up by the predictor, so any number of rows will do.
            check_feeds((_any_batch(tensor) if fixed else tensor,), feeds)
        except FeedMismatchError as error:
            raise RequestError(400, error.message, f"GET /v2/models/{self.predictor.name} lists the inputs.") from error
        with self.admit(rows):
            outputs = await self._batcher.submit(feeds[tensor.name])
        self.metrics.images.inc(rows)
        return outputs

    def observe(self, route: str, status: int, started: float) -> None:
        """Count an answered request; ``started`` is from :func:`time.perf_counter`."""
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.request_seconds.labels(route).observe(time.perf_counter() - started)


def _any_batch(tensor: TensorSpec) -> TensorSpec:
    return replace(tensor, shape=("batch", *tensor.shape[1:]))
