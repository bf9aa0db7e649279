"""Running a model over batches and keeping its outputs, for ``verification.parity`` to judge anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from vitexport.bundle.recording import Recording, input_hashes
from vitexport.errors import InferenceError
from vitexport.runtimes.base import Runtime
from vitexport.tensors import Array, batch_limit, pad_rows

__all__ = ["LARGEST", "record", "run_rows"]

LARGEST = 1 << 30
"""Bytes of answers that are kept of one model: comparing two such recordings takes some ten times as much memory."""

_BYTES = 4
"""Of a number: float32."""


def record(runtime: Runtime, names: Sequence[str], feeds: Iterable[Array], *, size: int | None = None) -> Recording:
    """Run a single-input model over batches and keep what it answers.

    Args:
        runtime: The opened model.
        names: Image names in the order of the rows of all batches.
        feeds: Batches for the model's only input. A model with a fixed batch size gets its last batch padded.
        size: Run batches of exactly this size, as if the model had it fixed: engines take some sizes only.

    Raises:
        FeedMismatchError: The batches do not fit the model.
        InferenceError: The model failed, or its answers to so many images are too large to be kept.
    """
    tensor = runtime.inputs[0]
    _require_room(runtime, len(names))
    fixed = size or batch_limit(tensor)
    hashes: list[str] = []
    collected: dict[str, list[Array]] = {}
    for feed in feeds:
        hashes.extend(input_hashes(feed))
        for name, array in run_rows(runtime, feed, fixed, pad=fixed is not None).items():
            collected.setdefault(name, []).append(array)
    outputs = {name: np.concatenate(arrays) for name, arrays in collected.items()}
    return Recording(runtime.name, tuple(names), tuple(hashes), outputs)


def _require_room(runtime: Runtime, images: int) -> None:
    """Refuse to keep what a model of large maps answers to many images, before it has run on any."""
    sizes = (math.prod(axis for axis in spec.shape[1:] if isinstance(axis, int)) for spec in runtime.outputs)
    each = _BYTES * sum(sizes)
    if images * each > LARGEST:
        raise InferenceError(
            f"Expected the answers to {images} images to fit into {LARGEST / 1e9:.1f} GB, found {each / 1e6:.1f} MB "
            f"for each: {', '.join(spec.describe() for spec in runtime.outputs)}.",
            f"Compare at most {max(1, LARGEST // each)} images: `data.verification.limit` in the recipe.",
        )


def run_rows(runtime: Runtime, feed: Array, size: int | None = None, *, pad: bool = False) -> dict[str, Array]:
    """Run a single-input model on any number of rows.

    Args:
        runtime: The opened model.
        feed: At least one row of the model's input.
        size: At most so many rows per run; None runs all at once.
        pad: Whether a shorter run is filled up to ``size``, as a model of a fixed batch size needs it.

    Returns:
        One row of every output per row of the feed.

    Raises:
        FeedMismatchError: A row does not fit the model.
        InferenceError: The model failed.
    """
    name = runtime.inputs[0].name
    step = size or len(feed)
    runs = []
    for start in range(0, len(feed), step):
        chunk = feed[start : start + step]
        outputs = runtime.run({name: pad_rows(chunk, step) if pad else chunk})
        runs.append({key: array[: len(chunk)] for key, array in outputs.items()})
    return runs[0] if len(runs) == 1 else {key: np.concatenate([run[key] for run in runs]) for key in runs[0]}
