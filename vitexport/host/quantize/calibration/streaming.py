"""Statistics accumulated one image at a time, of fixed size.

Nothing here grows with the number of images or depends on how images were batched: every image is accumulated on
its own, in order, with sums in float64.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import CalibrationError
from vitexport.host.quantize.calibration.covariance import LARGEST, StreamingCovariance
from vitexport.host.quantize.calibration.statistics import CLASS_TOKEN_IMPORTANCE, StatisticsConfig, TensorStatistics

__all__ = ["BINS", "EXTREME_ROWS", "StreamingStatistics", "sample_positions"]

BINS = 4096
"""Histogram bins over ``[-bound, bound)``; the bound is a power of two, doubled by merging pairs of bins."""

EXTREME_ROWS = 64
"""Rows of largest magnitude kept of each tensor."""

_COVARIANCE_ROWS, _COVARIANCE_ROWS_PER_CHANNEL = 4096, 4
"""Rows from which a covariance is good enough for learned rounding: twice as many change DeiT-Tiny by 0.02 dB."""

Floats = NDArray[np.float32]


def _fits_float16(rows: Floats) -> bool:
    """Return whether rows can be kept in 16 bits: the error of float16 is a hundredth of what 8 bits lose."""
    return bool(np.abs(rows).max(initial=0) < 6e4)


@lru_cache(maxsize=64)
def sample_positions(image: int, rows: int, wanted: int) -> NDArray[np.intp]:
    """Return which rows of an image are sampled: row 0 (the class token), others spread by a low-discrepancy sequence.

    Args:
        image: Index of the image in the calibration set.
        rows: Rows of one image.
        wanted: How many to pick.
    """
    if wanted >= rows:
        positions: NDArray[np.intp] = np.arange(rows)
        positions.flags.writeable = False
        return positions
    # Multiples of the golden ratio modulo 1 fill the unit interval evenly for any count (Weyl sequence).
    fractions = (np.arange(wanted) + image * wanted) * 0.6180339887498949 % 1.0
    positions = np.unique((fractions * rows).astype(np.intp))
    positions[0] = 0
    positions.flags.writeable = False  # shared by every tensor of that many rows
    return positions


class StreamingStatistics:
    """Accumulates :class:`TensorStatistics` one image at a time.

    Args:
        name: Tensor name, for messages and the result.
        images: How many images will come; fixes how many rows of each are sampled.
        config: What to keep.
        class_token: Row 0 of each image counts :data:`CLASS_TOKEN_IMPORTANCE` times in the covariance.
    """

    def __init__(self, name: str, *, images: int, config: StatisticsConfig, class_token: bool = False) -> None:
        self._name = name
        self._config = config
        self._class_token = class_token
        self._per_image = max(1, config.sample_rows // max(images, 1))
        self._images_to_come = max(images, 1)
        self._covariance_per_image = 0
        self._covariance: StreamingCovariance | None = None
        self._sample_rows = config.sample_rows
        self._images = 0
        self._rows = 0
        self._bound = 0.0
        self._histogram = np.zeros(BINS, dtype=np.int64)
        self._minimum: Floats = np.zeros((2, 0), dtype=np.float32)
        self._maximum: Floats = np.zeros((2, 0), dtype=np.float32)
        self._total: NDArray[np.float64] = np.zeros(0)
        self._sample: NDArray[np.floating[Any]] | None = None
        self._positions = np.zeros(config.sample_rows, dtype=np.int32)
        self._folds = np.zeros(config.sample_rows, dtype=np.uint8)
        self._filled = 0
        self._extremes: Floats = np.zeros((0, 0), dtype=np.float32)
        self._extreme_folds = np.zeros(0, dtype=np.uint8)
        self._peaks: Floats = np.zeros(0, dtype=np.float32)

    def update(self, value: NDArray[np.generic]) -> None:
        """Add one image's tensor, any rank; the last axis is the channel axis.

        Raises:
            CalibrationError: It holds NaN or infinity.
        """
        rows = np.ascontiguousarray(value, dtype=np.float32).reshape(-1, value.shape[-1])
        low, high = rows.min(axis=0), rows.max(axis=0)
        amax = float(max(-low.min(), high.max()))
        if not np.isfinite(amax):
            raise CalibrationError(
                f"Expected finite activations in '{self._name}', found NaN or infinity at image {self._images}.",
                "Check the preprocessing, and that the float model runs correctly (`vitexport verify`).",
            )
        fold = self._images % 2
        if self._sample is None:
            self._minimum = np.full((2, rows.shape[1]), np.inf, dtype=np.float32)
            self._maximum = np.full((2, rows.shape[1]), -np.inf, dtype=np.float32)
            self._total = np.zeros(rows.shape[1])
            self._sample = np.zeros((self._sample_rows, rows.shape[1]), dtype=np.float16)
            self._extremes = np.empty((0, rows.shape[1]), dtype=np.float32)
            if self._config.covariance_rows and rows.shape[1] <= LARGEST:
                self._covariance = StreamingCovariance(rows.shape[1])
                enough = max(_COVARIANCE_ROWS, _COVARIANCE_ROWS_PER_CHANNEL * rows.shape[1])
                self._covariance_per_image = -(-min(enough, self._config.covariance_rows) // self._images_to_come)
        np.minimum(self._minimum[fold], low, out=self._minimum[fold])
        np.maximum(self._maximum[fold], high, out=self._maximum[fold])
        self._total += np.ones(len(rows), dtype=np.float32) @ rows
        if self._config.histogram:
            self._count(rows, amax)
        if self._covariance is not None:
            self._correlate(rows, self._covariance)
        self._sample = self._keep(rows, self._sample)
        self._keep_extremes(rows, amax)
        self._rows += rows.shape[0]
        self._images += 1

    def _correlate(self, rows: Floats, covariance: StreamingCovariance) -> None:
        picked = sample_positions(self._images, rows.shape[0], self._covariance_per_image)
        weights = np.ones(len(picked), dtype=np.float32)
        if self._class_token and len(picked) > 1:
            weights[1:] = (rows.shape[0] - 1) / (len(picked) - 1)
            weights[0] = CLASS_TOKEN_IMPORTANCE
        covariance.update(rows[picked], weights)

    def _count(self, rows: Floats, amax: float) -> None:
        if amax >= self._bound:
            wanted = 2.0 ** (np.floor(np.log2(amax)) + 1) if amax > 0 else 2.0**-20
            while 0 < self._bound < wanted:
                merged = self._histogram.reshape(-1, 2).sum(axis=1)
                self._histogram[:] = 0
                self._histogram[BINS // 4 : BINS // 4 + BINS // 2] = merged
                self._bound *= 2
            self._bound = wanted
        # Scaling by a power of two and adding an integer: a value falls in the same bin whatever the machine.
        index = rows * np.float32(BINS / 2 / self._bound)
        index += np.float32(BINS // 2)
        self._histogram += np.bincount(index.astype(np.intp).ravel(), minlength=BINS)[:BINS]

    def _keep(self, rows: Floats, sample: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        picked = sample_positions(self._images, rows.shape[0], self._per_image)
        picked = picked[: self._sample_rows - self._filled]
        chosen = rows[picked]
        if sample.dtype == np.float16 and not _fits_float16(chosen):
            sample = sample.astype(np.float32)
        end = self._filled + len(picked)
        sample[self._filled : end] = chosen
        self._positions[self._filled : end] = picked
        self._folds[self._filled : end] = self._images % 2
        self._filled = end
        return sample

    def _keep_extremes(self, rows: Floats, amax: float) -> None:
        threshold = self._peaks[-1] if len(self._peaks) == EXTREME_ROWS else np.float32(-1)
        if amax <= threshold:
            return
        peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        candidates = np.flatnonzero(peaks > threshold)
        all_peaks = np.concatenate([self._peaks, peaks[candidates]])
        order = np.argsort(-all_peaks, kind="stable")[:EXTREME_ROWS]
        self._extremes = np.concatenate([self._extremes, rows[candidates]])[order]
        fold = np.full(len(candidates), self._images % 2, dtype=np.uint8)
        self._extreme_folds = np.concatenate([self._extreme_folds, fold])[order]
        self._peaks = all_peaks[order]

    def result(self) -> TensorStatistics:
        """Return what was accumulated.

        Raises:
            CalibrationError: No image was added.
        """
        if self._sample is None:
            raise CalibrationError(
                f"No calibration image reached the tensor '{self._name}'.", "Give calibration images."
            )
        nothing: tuple[NDArray[np.float16], Floats] = (np.zeros(0, np.float16), np.zeros(0, np.float32))
        correlations, deviation = nothing if self._covariance is None else self._covariance.result()
        return TensorStatistics(
            name=self._name,
            rows=self._rows,
            bound=self._bound,
            histogram=self._histogram.copy(),
            fold_minimum=self._minimum,
            fold_maximum=self._maximum,
            total=self._total,
            sample=self._sample[: self._filled],
            sample_rows=self._positions[: self._filled].copy(),
            sample_folds=self._folds[: self._filled].copy(),
            extreme_folds=self._extreme_folds,
            extremes=self._extremes.astype(np.float16) if _fits_float16(self._extremes) else self._extremes,
            correlations=correlations,
            deviation=deviation,
        )
