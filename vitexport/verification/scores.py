"""How good the answers of a head are on labelled images: of one class, of several labels at once, of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.scoring import Head
from vitexport.tensors import Array
from vitexport.verification.accuracy import Accuracy, accuracy, smallest_correlation

__all__ = [
    "LabelScores",
    "Score",
    "ValueScores",
    "average_precision",
    "average_precisions",
    "label_scores",
    "present_labels",
    "score_answers",
    "value_scores",
]


@dataclass(frozen=True)
class LabelScores:
    """How well several labels at once are found; fractions, 0 to 1.

    Attributes:
        images: Number of labelled images.
        mean_average_precision: Mean of :func:`average_precision` over the labels that any image has.
        micro_f1: ``2 TP / (2 TP + FP + FN)`` over all labels and images together, at the head's threshold.
        macro_f1: Mean of the same of each label; a label that no image has and none is given counts as 0.
        exact: Fraction of images with every label right.
    """

    images: int
    mean_average_precision: float
    micro_f1: float
    macro_f1: float
    exact: float

    def figures(self) -> tuple[tuple[str, str], ...]:
        """Return what tables show, by name; the first one is the main one."""
        named = {
            "mAP %": self.mean_average_precision,
            "micro F1 %": self.micro_f1,
            "macro F1 %": self.macro_f1,
            "all labels %": self.exact,
        }
        return tuple((name, f"{100 * value:.2f}") for name, value in named.items())


@dataclass(frozen=True)
class ValueScores:
    """How near the values of a regression are to the true ones.

    Attributes:
        images: Number of labelled images.
        mean_abs: Mean absolute error, in the unit of the values.
        rms: Root of the mean squared error, in the same unit.
        correlation: Smallest Pearson correlation of any value over the images; None where the truth is constant or
            there are fewer than three images.
    """

    images: int
    mean_abs: float
    rms: float
    correlation: float | None

    def figures(self) -> tuple[tuple[str, str], ...]:
        """Return what tables show, by name; the first one is the main one."""
        errors = ("MAE", f"{self.mean_abs:.4g}"), ("RMS error", f"{self.rms:.4g}")
        return errors if self.correlation is None else (*errors, ("correlation", f"{self.correlation:.4f}"))


Score = Accuracy | LabelScores | ValueScores


def score_answers(outputs: Array, targets: Sequence[object], head: Head) -> Score:
    """Score the outputs of a classifier, ``[N, outputs]``, by its kind of head.

    Args:
        outputs: Logits, or the values of a regression.
        targets: For each image a class index, the indices of the labels it has, or its value (several in a sequence).
        head: How the outputs are read.
    """
    if head.scoring == "softmax":
        return accuracy(outputs, [int(target) for target in targets])  # type: ignore[call-overload]
    if head.scoring == "sigmoid":
        return label_scores(outputs, present_labels(targets, outputs.shape[1]), head)
    return value_scores(outputs, np.asarray(targets, dtype=np.float64).reshape(outputs.shape))


def label_scores(logits: Array, truth: NDArray[np.bool_], head: Head) -> LabelScores:
    """Score ``[N, labels]`` logits against which labels are there, ``bool[N, labels]``."""
    given = head.decisions(logits)
    assert given is not None  # a sigmoid always decides
    chosen = given.astype(bool)
    hits, wrong, missed = (chosen & truth).sum(axis=0), (chosen & ~truth).sum(axis=0), (~chosen & truth).sum(axis=0)
    present = truth.any(axis=0)
    precisions = [average_precision(logits[:, label], truth[:, label]) for label in np.flatnonzero(present)]
    return LabelScores(
        images=len(truth),
        mean_average_precision=float(np.mean(precisions)) if precisions else 0.0,
        micro_f1=float(_f1(hits.sum(), wrong.sum(), missed.sum())),
        macro_f1=float(np.mean(_f1(hits, wrong, missed))),
        exact=float((chosen == truth).all(axis=1).mean()),
    )


def value_scores(found: Array, truth: NDArray[np.float64]) -> ValueScores:
    """Score ``[N, values]`` against the true ones of the same shape."""
    values = np.asarray(found, dtype=np.float64)
    error = values - truth
    return ValueScores(
        images=len(truth),
        mean_abs=float(np.abs(error).mean()),
        rms=float(np.sqrt(np.square(error).mean())),
        correlation=smallest_correlation(truth, values),
    )


def average_precision(scores: Array, truth: NDArray[np.bool_]) -> float:
    """Return ``sum((R[n] - R[n-1]) * P[n])`` over the distinct scores from high to low, without interpolation.

    Source: Zhu, "Recall, Precision and Average Precision", 2004; it is scikit-learn's ``average_precision_score``.

    Args:
        scores: Of one label, ``[N]``.
        truth: Whether it is there, ``bool[N]``, at least once.
    """
    return float(average_precisions(scores, truth, np.ones((1, len(truth)), dtype=np.int64))[0])


def average_precisions(scores: Array, truth: NDArray[np.bool_], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return :func:`average_precision` of images that count so many times.

    Args:
        scores: Of one label, ``[N]``.
        truth: Whether it is there, ``bool[N]``.
        weights: How often each image counts, ``[R, N]``.

    Returns:
        ``[R]``; NaN where no image that counts has the label.
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ranked, counted = np.asarray(scores)[order], weights[:, order]
    # Images of equal score stand or fall together.
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits, taken = (np.cumsum(part, axis=1)[:, last] for part in (counted * truth[order], counted))
    recall = np.divide(hits, hits[:, -1:], out=np.full(hits.shape, np.nan), where=hits[:, -1:] > 0)
    steps = np.diff(recall, axis=1, prepend=0.0)
    result: NDArray[np.float64] = (steps * (hits / np.maximum(taken, 1))).sum(axis=1)
    return result


def _f1(hits: NDArray[np.int64], wrong: NDArray[np.int64], missed: NDArray[np.int64]) -> NDArray[np.float64]:
    denominator = 2 * hits + wrong + missed
    result: NDArray[np.float64] = 2 * hits / np.maximum(denominator, 1)
    return result


def present_labels(targets: Sequence[object], labels: int) -> NDArray[np.bool_]:
    """Return ``bool[N, labels]`` of the indices of the labels that each image has."""
    truth = np.zeros((len(targets), labels), dtype=bool)
    for row, target in enumerate(targets):
        truth[row, list(target)] = True  # type: ignore[call-overload]
    return truth
