"""Calibration statistics of a tensor, and what to keep in them: a histogram, the channels' extremes, sums and
covariance, and a few sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.calibration.covariance import unpack_covariance

__all__ = ["CLASS_TOKEN_IMPORTANCE", "EXTREMES_ONLY", "Fold", "StatisticsConfig", "TensorStatistics"]

CLASS_TOKEN_IMPORTANCE = 20.0
"""What the class token's row counts for against another row: the head reads it directly, while attention averages over
the others. On DeiT-Tiny anything from 10 to 50 gains 2 dB of logit SQNR over 1."""

_MANY_ROWS = 16384
"""So many rows show the extremes of a channel on other images too; fewer show less."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StatisticsConfig:
    """How much calibration keeps of each tensor.

    Attributes:
        sample_rows: Rows of each activation kept for measuring layer-output errors.
        covariance_rows: Rows over all images that enter the covariance of many channels; fewer channels need fewer. 0
            keeps none.
        histogram: Whether to keep a histogram, which only the methods percentile, entropy and mse read.
    """

    sample_rows: int = 1024
    covariance_rows: int = 8192
    histogram: bool = True


EXTREMES_ONLY = StatisticsConfig(sample_rows=0, covariance_rows=0, histogram=False)
"""For tensors of which only extremes and means are read."""


@dataclass(frozen=True)
class Fold:
    """What half of the images show of a tensor, and rows of the other half, which those ranges were not made from.

    Attributes:
        minimum: float32 ``[C]`` smallest value of each channel.
        maximum: float32 ``[C]`` largest value of each channel.
        rows: float32 ``[R, C]`` rows of the other images.
        counts: float32 ``[R]`` what each row counts for; they sum to 1.
    """

    minimum: Floats
    maximum: Floats
    rows: Floats
    counts: Floats


@dataclass(frozen=True)
class TensorStatistics:
    """What calibration keeps of one tensor, seen as rows of channels (the last axis).

    Attributes:
        name: Tensor name in the calibrated graph.
        rows: How many rows were seen.
        bound: Half width of the histogram, a power of two.
        histogram: int64 ``[BINS]`` counts over ``[-bound, bound)``.
        fold_minimum: float32 ``[2, C]`` smallest value of each channel in every second image, and in the others.
        fold_maximum: float32 ``[2, C]`` largest value of each channel, as before.
        total: float64 ``[C]`` sum of each channel.
        sample: float16 ``[R, C]`` (float32 from the first row that it cannot hold) rows spread evenly over images
            and positions, the same for any batch size.
        sample_rows: int32 ``[R]`` position of each sampled row in its image.
        sample_folds: uint8 ``[R]`` the fold of its image, 0 or 1.
        extreme_folds: uint8 ``[E]`` the fold of each extreme row's image.
        extremes: as ``sample``, ``[E, C]``; the rows that hold the largest magnitudes, which a sample would miss.
        correlations: float16 ``[C (C - 1) / 2]`` above the diagonal, row by row; empty where none were config.
        deviation: float32 ``[C]`` standard deviation of each channel, of the same rows; empty with them.
    """

    name: str
    rows: int
    bound: float
    histogram: NDArray[np.int64]
    fold_minimum: Floats
    fold_maximum: Floats
    total: NDArray[np.float64]
    sample: NDArray[np.floating[Any]]
    sample_rows: NDArray[np.int32]
    sample_folds: NDArray[np.uint8]
    extreme_folds: NDArray[np.uint8]
    extremes: NDArray[np.floating[Any]]
    correlations: NDArray[np.float16]
    deviation: Floats

    @property
    def channels(self) -> int:
        """Number of channels (size of the last axis)."""
        return int(self.fold_minimum.shape[1])

    @property
    def minimum(self) -> Floats:
        """Smallest value of each channel, float32 ``[C]``."""
        smallest: Floats = self.fold_minimum.min(axis=0)
        return smallest

    @property
    def maximum(self) -> Floats:
        """Largest value of each channel, float32 ``[C]``."""
        largest: Floats = self.fold_maximum.max(axis=0)
        return largest

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each channel, float64 ``[C]``."""
        return self.total / max(self.rows, 1)

    @property
    def amax(self) -> float:
        """Largest magnitude of the tensor."""
        return float(max(-self.minimum.min(), self.maximum.max()))

    @property
    def range_margin(self) -> float:
        """Factor by which the extremes of many rows are expected to exceed those seen here, at least 1.

        The largest of n samples of a normal distribution grows like ``sqrt(2 ln n)`` (Fisher and Tippett, 1928). In a
        last block that computes the class token alone, calibration sees one row of each image.
        """
        return max(1.0, float(np.sqrt(np.log(_MANY_ROWS) / np.log(max(self.rows, 2)))))

    def rows_and_weights(self, *, class_token: bool) -> tuple[Floats, Floats]:
        """Return sample and extremes as one ``[R + E, C]`` array, and what each row counts for (they sum to 1).

        A stratified sample: an extreme row stands for itself, a sampled one for its fraction of all others.

        Args:
            class_token: Row 0 of each image is what the head reads; it counts :data:`CLASS_TOKEN_IMPORTANCE` times.
        """
        each = np.full(len(self.sample), max(self.rows - len(self.extremes), 0) / max(len(self.sample), 1))
        if class_token:
            first = self.sample_rows == 0
            images = int(first.sum())
            each[:] = (self.rows - images) / max(len(self.sample) - images, 1)
            each[first] = CLASS_TOKEN_IMPORTANCE
        weights = np.concatenate([each, np.ones(len(self.extremes))])
        rows = np.concatenate([self.sample, self.extremes]).astype(np.float32)
        return rows, (weights / weights.sum()).astype(np.float32)

    def folds(self, *, class_token: bool) -> list[Fold]:
        """Return the two halves of the images, each with the rows of the other to judge its ranges by.

        With one image there is one: its own rows.

        Args:
            class_token: See :meth:`rows_and_weights`.
        """
        rows, weights = self.rows_and_weights(class_token=class_token)
        fold = np.concatenate([self.sample_folds, self.extreme_folds])
        # Every second row tells one range from another as well as all; those that count for much stay.
        others = np.concatenate([self.sample_rows != 0, np.zeros(len(self.extremes), dtype=bool)])
        kept = ~others | (np.cumsum(others) % 2 == 0)
        weights = np.where(others, 2 * weights, weights)
        found = []
        for index in (0, 1):
            chosen = kept & (fold != index)
            if chosen.any() and (fold == index).any():
                counts = weights[chosen] / weights[chosen].sum()
                found.append(Fold(self.fold_minimum[index], self.fold_maximum[index], rows[chosen], counts))
        return found or [Fold(self.minimum, self.maximum, rows, weights / weights.sum())]

    def without_rows(self) -> TensorStatistics:
        """Return what is known of single channels; rows and covariance are most of what statistics take."""
        return replace(
            self,
            sample=self.sample[:0].copy(),
            sample_rows=self.sample_rows[:0].copy(),
            sample_folds=self.sample_folds[:0].copy(),
            extreme_folds=self.extreme_folds[:0].copy(),
            extremes=self.extremes[:0].copy(),
            correlations=self.correlations[:0].copy(),
            deviation=self.deviation[:0].copy(),
        )

    def covariance(self) -> Floats | None:
        """Return the covariance of the channels, float32 ``[C, C]``, or None where it was not config."""
        return unpack_covariance(self.correlations, self.deviation) if self.deviation.size else None
