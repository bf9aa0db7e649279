"""Running a model over batches and keeping what it answers, for :mod:`vitexport.parity` to judge anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vitexport.recording import Recording, input_hashes
from vitexport.runtimes.base import Runtime
from vitexport.tensors import Array, batch_limit

__all__ = ["record"]


def record(runtime: Runtime, names: Sequence[str], feeds: Iterable[Array], *, size: int | None = None) -> Recording:
    """Run a single-input model over batches and keep what it answers.

    Args:
        runtime: The opened model.
        names: Image names in the order of the rows of all batches.
        feeds: Batches for the model's only input. A model with a fixed batch size gets its last batch padded.
        size: Run batches of exactly this size, as if the model had it fixed: engines take some sizes only.

    Raises:
        FeedMismatchError: The batches do not fit the model.
        InferenceError: The model failed.
    """
    tensor = runtime.inputs[0]
    fixed = size or batch_limit(tensor)
    hashes: list[str] = []
    collected: dict[str, list[Array]] = {}
    for feed in feeds:
        hashes.extend(input_hashes(feed))
        for chunk in _chunks(feed, fixed):
            padded = chunk if fixed is None else _pad(chunk, fixed)
            for name, array in runtime.run({tensor.name: padded}).items():
                collected.setdefault(name, []).append(array[: len(chunk)])
    outputs = {name: np.concatenate(arrays) for name, arrays in collected.items()}
    return Recording(runtime.name, tuple(names), tuple(hashes), outputs)


def _chunks(feed: Array, size: int | None) -> Iterable[Array]:
    if size is None:
        return [feed]
    return [feed[start : start + size] for start in range(0, len(feed), size)]


def _pad(chunk: Array, size: int) -> Array:
    if len(chunk) == size:
        return chunk
    return np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), axis=0)])
