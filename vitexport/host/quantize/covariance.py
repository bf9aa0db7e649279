"""Streaming covariance of an activation's channels, which learned rounding (GPTQ) needs; its size is fixed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST", "StreamingCovariance", "unpack_covariance"]

LARGEST = 4096
"""Channels above which no covariance is kept: 5120 of them (ViT-H) would take 105 MB for each layer."""

_BUFFERED = 512
"""Rows gathered before one matrix product adds them."""

Floats = NDArray[np.float32]


class StreamingCovariance:
    """Accumulates the weighted covariance of rows.

    Args:
        channels: Length of a row.
    """

    def __init__(self, channels: int) -> None:
        self._buffer = np.empty((_BUFFERED, channels), dtype=np.float32)
        self._filled = 0
        self._products = np.zeros((channels, channels), dtype=np.float32)
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
        self._products += used.T @ used
        self._filled = 0

    def result(self) -> tuple[NDArray[np.float16], Floats]:
        """Return the correlations above the diagonal, packed row by row, and the standard deviation of each channel."""
        self._flush()
        mean = self._sum / max(self._weight, 1e-30)
        covariance = self._products / np.float32(max(self._weight, 1e-30))
        covariance -= np.outer(mean, mean).astype(np.float32)
        deviation = np.sqrt(np.maximum(np.diagonal(covariance), 0.0))
        inverse = np.where(deviation > 0, 1 / np.maximum(deviation, 1e-30), 0.0).astype(np.float32)
        covariance *= inverse
        covariance *= inverse[:, None]
        upper = np.triu_indices(len(deviation), 1)
        return np.clip(covariance[upper], -1, 1).astype(np.float16), deviation.astype(np.float32)


def unpack_covariance(packed: NDArray[np.float16], deviation: Floats) -> Floats:
    """Return the covariance ``[C, C]`` that :meth:`StreamingCovariance.result` packed."""
    channels = len(deviation)
    covariance = np.zeros((channels, channels), dtype=np.float32)
    covariance[np.triu_indices(channels, 1)] = packed
    covariance += covariance.T
    np.fill_diagonal(covariance, 1.0)
    covariance *= deviation
    covariance *= deviation[:, None]
    return covariance
