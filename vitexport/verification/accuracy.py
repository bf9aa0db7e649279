"""Top-1 and top-5 on labelled images, and how sure one can be of a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.tensors import Array

__all__ = ["Accuracy", "PairedDifference", "accuracy", "compare_top1", "smallest_correlation", "top1"]


@dataclass(frozen=True)
class Accuracy:
    """Fractions of images, 0 to 1, whose class is the first or among the first five."""

    images: int
    top1: float
    top5: float


@dataclass(frozen=True)
class PairedDifference:
    """Difference of top-1 between two models on the same images.

    Attributes:
        images: Number of labelled images.
        drop_points: Points of top-1 that the candidate lost (negative when it gained).
        only_reference: Images only the reference got right.
        only_candidate: Images only the candidate got right.
        p_value: Exact two-sided McNemar test (McNemar 1947): chance of a split at least this uneven were both models
            equally good.
        interval_points: 95 % confidence interval of the drop in points (Wald interval for paired proportions).
    """

    images: int
    drop_points: float
    only_reference: int
    only_candidate: int
    p_value: float
    interval_points: tuple[float, float]


def top1(logits: Array) -> NDArray[np.int64]:
    """Return the class of each row of ``[N, C]`` logits."""
    classes: NDArray[np.int64] = np.asarray(logits).argmax(axis=-1).astype(np.int64)
    return classes


def accuracy(logits: Array, targets: Sequence[int]) -> Accuracy:
    """Score ``[N, C]`` logits against N class indices."""
    scores = np.asarray(logits)
    truth = np.asarray(targets)[:, None]
    best = np.argsort(-scores.astype(np.float64), axis=-1, kind="stable")[:, :5]
    return Accuracy(
        images=len(scores),
        top1=float((best[:, :1] == truth).any(axis=1).mean()),
        top5=float((best == truth).any(axis=1).mean()),
    )


def compare_top1(reference: Array, candidate: Array, targets: Sequence[int]) -> PairedDifference:
    """Compare two models' ``[N, C]`` logits on the same labelled images with McNemar's exact test."""
    truth = np.asarray(targets)
    right_reference = top1(reference) == truth
    right_candidate = top1(candidate) == truth
    lost = int((right_reference & ~right_candidate).sum())
    gained = int((~right_reference & right_candidate).sum())
    n = len(truth)
    drop = (lost - gained) / n
    deviation = math.sqrt(max(lost + gained - (lost - gained) ** 2 / n, 0.0)) / n
    return PairedDifference(
        images=n,
        drop_points=100 * drop,
        only_reference=lost,
        only_candidate=gained,
        p_value=_mcnemar_exact(lost, gained),
        interval_points=(100 * (drop - 1.96 * deviation), 100 * (drop + 1.96 * deviation)),
    )


def _mcnemar_exact(lost: int, gained: int) -> float:
    """Return the two-sided binomial probability of ``min(lost, gained)`` or fewer in ``lost + gained`` fair tosses."""
    n = lost + gained
    tail = sum(math.comb(n, k) for k in range(min(lost, gained) + 1))
    return min(1.0, 2.0 * tail / float(2**n))


def smallest_correlation(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float | None:
    """Return the smallest Pearson correlation of any column of two ``[N, values]`` arrays.

    Returns:
        None where there are fewer than three rows or no column of the expected varies. A column of the other that does
        not vary follows nothing, and counts as 0.
    """
    varies = expected.std(axis=0) > 0
    if len(expected) < 3 or not varies.any():
        return None
    columns = zip(expected[:, varies].T, found[:, varies].T, strict=True)
    return min(float(np.corrcoef(first, second)[0, 1]) if second.std() > 0 else 0.0 for first, second in columns)
