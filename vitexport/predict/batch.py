"""Predicting many files: chunks by position, one worker per core, bad images recorded with their reason.

A chunk is a run of consecutive sources. What is in a chunk depends only on the sources and its size, never on timing,
so every engine runs the same batches and writes the same numbers, and a job resumes at chunk granularity.

Each worker decodes, preprocesses *and* infers its own chunk with a single-threaded session. On a CPU this keeps every
core busy without the threads of one stage waiting (or spinning) for another's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock

from vitexport.errors import ImageError
from vitexport.inputs.images import load_image
from vitexport.predict.predictor import Prediction, Predictor
from vitexport.tensors import Array

__all__ = [
    "Chunk",
    "ChunkPredictor",
    "ChunkResult",
    "Row",
    "chunks",
    "predict_chunks",
]


@dataclass(frozen=True)
class Row:
    """What became of one image.

    Attributes:
        image: Path as it was given.
        predictions: Best classes first; empty for a features model or a bad image.
        features: Feature vector; empty for a classifier or a bad image.
        error: Why the image could not be used; empty otherwise.
    """

    image: str
    predictions: tuple[Prediction, ...] = ()
    features: tuple[float, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Chunk:
    """Consecutive sources.

    Attributes:
        index: Position of the chunk.
        paths: Its files.
    """

    index: int
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class ChunkResult:
    """The rows of a chunk, in its order."""

    index: int
    rows: tuple[Row, ...]


def chunks(paths: Sequence[str | Path], size: int) -> tuple[Chunk, ...]:
    """Cut paths into chunks of ``size``; the last one may be shorter."""
    files = tuple(map(Path, paths))
    starts = range(0, len(files), size)
    return tuple(Chunk(index, files[start : start + size]) for index, start in enumerate(starts))


class ChunkPredictor:
    """Predicts chunks with one model; safe to call from several threads.

    Args:
        predictor: The model.
        top: Classes per image.
    """

    def __init__(self, predictor: Predictor, top: int) -> None:
        self._predictor = predictor
        self._top = top
        self._turn: AbstractContextManager[object] = nullcontext() if predictor.concurrent else Lock()

    def __call__(self, chunk: Chunk) -> ChunkResult:
        """Decode, preprocess and infer; a bad image becomes a row with its reason.

        Raises:
            InferenceError: The model failed, which no image is to blame for.
        """
        inputs = [self._prepare(path) for path in chunk.paths]
        prepared = [entry for entry in inputs if not isinstance(entry, str)]
        vectors: Iterator[Array] = iter(())
        if prepared:
            with self._turn:
                vectors = iter(self._predictor.infer(prepared))
        rows = (
            Row(str(path), error=entry) if isinstance(entry, str) else self._row(path, next(vectors))
            for path, entry in zip(chunk.paths, inputs, strict=True)
        )
        return ChunkResult(chunk.index, tuple(rows))

    def _prepare(self, path: Path) -> Array | str:
        """Return the model input, or the reason why there is none."""
        try:
            return self._predictor.prepare(load_image(path))
        except ImageError as error:
            return error.message

    def _row(self, path: Path, vector: Array) -> Row:
        result = self._predictor.result(vector, self._top)
        return Row(str(path), result.predictions, result.features)


def predict_chunks(predict: ChunkPredictor, work: Iterable[Chunk], workers: int) -> Iterator[ChunkResult]:
    """Predict chunks on a pool of threads and yield results in order; at most ``2 * workers`` are under way.

    Raises:
        InferenceError: The model failed; chunks not yet begun are dropped.
    """
    waiting = iter(work)
    with ThreadPoolExecutor(workers, thread_name_prefix="predict") as pool:
        running: deque[Future[ChunkResult]] = deque()
        running.extend(pool.submit(predict, chunk) for chunk in islice(waiting, 2 * workers))
        try:
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(predict, chunk) for chunk in islice(waiting, 1))
        finally:
            for future in running:
                future.cancel()
