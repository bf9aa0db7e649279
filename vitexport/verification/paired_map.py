"""Difference of mAP between two models on the same images, and how sure one can be of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.intervals import Z95, paired_difference
from vitexport.tensors import Array
from vitexport.verification.scores import average_precisions

__all__ = ["MapDifference", "compare_map"]

_RESAMPLES = 200
"""Enough for a standard error (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 6.4)."""


@dataclass(frozen=True)
class MapDifference:
    """Difference of mean average precision between two models on the same images.

    Attributes:
        images: Number of labelled images.
        drop_points: Points of mAP that the candidate lost (negative when it gained).
        standard_error_points: Its standard error, by bootstrap over resamples of the images (Efron 1979).
    """

    images: int
    drop_points: float
    standard_error_points: float

    def interval_points(self, times: float = 1.0) -> tuple[float, float]:
        """Return the 95 % interval of the drop, on so many times as many images.

        It is normal, and no narrower than Tango's of as many images of which none is judged differently: a resample of
        images that two models rank alike knows no difference, and more images might.
        """
        _, least = paired_difference(0, 0, self.images * times)
        half = max(Z95 * self.standard_error_points / times**0.5, 100 * least)
        return self.drop_points - half, self.drop_points + half


def compare_map(reference: Array, candidate: Array, truth: NDArray[np.bool_]) -> MapDifference | None:
    """Compare two models' ``[N, labels]`` logits on the same labelled images.

    Args:
        reference: Of the first model.
        candidate: Of the second one.
        truth: Which labels are there, ``bool[N, labels]``.

    Returns:
        None where no image has any label.
    """
    if not truth.any():
        return None
    images = len(truth)
    counts = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), _RESAMPLES)
    weights = np.concatenate([np.ones((1, images), dtype=np.int64), counts])
    drops = 100 * (_mean_precision(reference, truth, weights) - _mean_precision(candidate, truth, weights))
    return MapDifference(images, float(drops[0]), float(np.nanstd(drops[1:], ddof=1)))


def _mean_precision(scores: Array, truth: NDArray[np.bool_], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mAP of each row of image weights; NaN for one without any label."""
    total, labels = np.zeros(len(weights)), np.zeros(len(weights))
    for label in np.flatnonzero(truth.any(axis=0)):
        found = average_precisions(np.asarray(scores)[:, label], truth[:, label], weights)
        known = ~np.isnan(found)
        total[known] += found[known]
        labels += known
    result: NDArray[np.float64] = np.divide(total, labels, out=np.full(len(weights), np.nan), where=labels > 0)
    return result
