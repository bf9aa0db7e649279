"""Streaming covariance of an activation's channels, which learned rounding (GPTQ) needs; its size is fixed."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST", "StreamingCovariance", "unpack_covariance"]

LARGEST = 4096
"""Channels above which no covariance is kept: 5120 of them (ViT-H) would take 105 MB for each layer."""

_BUFFERED = 512
"""Rows gathered before one GEMM adds them."""

_SLAB = 64
"""Rows of the symmetric Gram matrix that are kept together, from their first diagonal element on."""

Floats = NDArray[np.float32]


def _mapped(rows: int, columns: int) -> Floats:
    """Return zeros in a mapping of their own: freed, they leave the process at once instead of holes in its heap."""
    zeros: Floats = np.ndarray((rows, columns), dtype=np.float32, buffer=mmap.mmap(-1, 4 * rows * columns))
    return zeros


class StreamingCovariance:
    """Accumulates the weighted covariance of rows.

    Args:
        channels: Length of a row.
    """

    def __init__(self, channels: int) -> None:
        self._buffer = _mapped(_BUFFERED, channels)
        self._filled = 0
        self._slabs = {
            start: _mapped(min(_SLAB, channels - start), channels - start) for start in range(0, channels, _SLAB)
        }
        self._sum: NDArray[np.float64] = np.zeros(channels)
        self._weight = 0.0

    def update(self, rows: Floats, weights: Floats) -> None:
        """Add rows ``[R, C]`` that count ``weights`` ``[R]`` times each."""
        self._sum += weights @ rows
        self._weight += float(weights.sum())
        scaled = rows * np.sqrt(weights)[:, None]
        while len(scaled):
            part = scaled[: _BUFFERED - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            scaled = scaled[len(part) :]
            if self._filled == _BUFFERED:
                self._flush()

    def _flush(self) -> None:
        used = self._buffer[: self._filled]
        gram = used.T @ used
        for start, slab in self._slabs.items():
            slab += gram[start : start + len(slab), start:]
        self._filled = 0

    def result(self) -> tuple[NDArray[np.float16], Floats]:
        """Return the correlations above the diagonal, packed row by row, and the standard deviation of each channel."""
        self._flush()
        weight = max(self._weight, 1e-30)
        mean = self._sum / weight
        diagonal = np.concatenate([np.diagonal(slab) for slab in self._slabs.values()]) / np.float32(weight)
        deviation = np.sqrt(np.maximum(diagonal - (mean * mean).astype(np.float32), 0.0))
        inverse = np.where(deviation > 0, 1 / np.maximum(deviation, 1e-30), 0.0).astype(np.float32)
        packed = []
        for start, slab in self._slabs.items():
            covariance = slab / np.float32(weight)
            covariance -= np.outer(mean[start : start + len(slab)], mean[start:]).astype(np.float32)
            covariance *= inverse[start:]
            covariance *= inverse[start : start + len(slab), None]
            np.clip(covariance, -1, 1, out=covariance)
            packed += [row[index + 1 :].astype(np.float16) for index, row in enumerate(covariance)]
        return np.concatenate(packed), deviation.astype(np.float32)


def unpack_covariance(packed: NDArray[np.float16], deviation: Floats) -> Floats:
    """Return the covariance ``[C, C]`` that :meth:`StreamingCovariance.result` packed."""
    channels = len(deviation)
    covariance = np.eye(channels, dtype=np.float32)
    first = 0
    for row in range(channels):
        above = packed[first : first + channels - row - 1]
        covariance[row, row + 1 :] = above
        covariance[row + 1 :, row] = above
        first += len(above)
    covariance *= deviation
    covariance *= deviation[:, None]
    return covariance
