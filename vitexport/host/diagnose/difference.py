"""Accumulating the difference of two tensors over images, as a whole and per channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference"]


class Difference:
    """Energy of a signal and of the error on it; channels are the last axis.

    Attributes:
        not_finite: Elements that are not finite in the candidate but are in the reference.
    """

    def __init__(self) -> None:
        self._signals: NDArray[np.float64] = np.zeros(1)
        self._noise: NDArray[np.float64] = np.zeros(1)
        self.not_finite = 0

    def add(self, reference: NDArray[np.generic], candidate: NDArray[np.generic]) -> None:
        """Add one image (or batch).

        Tensors of a square matrix per head (attention probabilities) have tokens as channels, which is as good.
        """
        expected = reference.astype(np.float64).reshape(-1, reference.shape[-1])
        actual = candidate.astype(np.float64).reshape(-1, candidate.shape[-1])
        fine = np.isfinite(actual)
        self.not_finite += int((~fine & np.isfinite(expected)).sum())
        noise = np.where(fine, actual - expected, 0.0) ** 2
        self._noise = self._noise + noise.sum(axis=0)
        self._signals = self._signals + (expected**2).sum(axis=0)

    @property
    def relative(self) -> float:
        """RMS of the error over RMS of the signal."""
        return self._ratio(float(self._noise.sum()))

    @property
    def peak(self) -> float:
        """RMS of the error in the worst channel over RMS of the signal."""
        return self._ratio(float(self._noise.max()) * self._noise.size)

    @property
    def channel(self) -> float:
        """RMS of the error over RMS of the signal in the channel where that is largest.

        A channel that hardly carries anything counts with a tenth of the mean energy, so that silence is not a fault.
        """
        floor = 0.1 * float(self._signals.mean())
        carried = np.maximum(self._signals, floor)
        if floor == 0:
            return 0.0 if not self._noise.any() else float("inf")
        return float(np.sqrt((self._noise / carried).max()))

    @property
    def sqnr_db(self) -> float:
        """Signal-to-noise ratio in dB; infinite when equal."""
        return float("inf") if self.relative == 0 else -20 * float(np.log10(self.relative))

    def _ratio(self, noise: float) -> float:
        signal = float(self._signals.sum())
        if signal == 0:
            return 0.0 if noise == 0 else float("inf")
        return float(np.sqrt(noise / signal))
