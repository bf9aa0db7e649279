"""Which images two variants disagree on most, and what each of them said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.bundle.recording import Recording
from vitexport.scoring import Head, score_outputs

__all__ = ["Disagreement", "Prediction", "worst_images"]


@dataclass(frozen=True)
class Prediction:
    """A class, label or value of an answer, and its score: a probability, or the value itself of a regression."""

    index: int
    score: float


@dataclass(frozen=True)
class Disagreement:
    """One image and what reference and candidate made of it.

    Attributes:
        image: Name of the image.
        target: Its true class, or None when unlabelled or where several labels may be there.
        reference: What PyTorch said: its first class; or of labels and values, the one the two differ most in.
        candidate: What the variant under test said: its own first class; or the same label or value.
        distance: Of a softmax the total variation distance of the two distributions, 0 (equal) to 1 (nothing in
            common); of labels the largest difference of a probability; of values the largest difference.
        same_decision: Whether both chose the same class or found the same labels.
    """

    image: str
    target: int | None
    reference: Prediction
    candidate: Prediction
    distance: float
    same_decision: bool


def worst_images(
    reference: Recording,
    candidate: Recording,
    targets: Sequence[object] | None = None,
    *,
    count: int = 8,
    head: Head = Head(),  # noqa: B008  # frozen
) -> tuple[Disagreement, ...]:
    """Return the images whose answers differ most: other decisions first, then by distance.

    Args:
        reference: Recording of PyTorch.
        candidate: Recording of the variant under test, of the same images.
        targets: What is true of each image, or None.
        count: At most so many.
        head: How the outputs are read.

    Returns:
        Empty when the outputs are those of no classifier or cannot be compared.
    """
    expected, found = head.main_output(reference.outputs), head.main_output(candidate.outputs)
    if head.task != "classify" or expected is None or found is None or reference.images != candidate.images:
        return ()
    if expected.shape != found.shape or not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return ()
    p, q = score_outputs(expected, head.scoring), score_outputs(found, head.scoring)
    apart = np.abs(p - q)
    distance = 0.5 * apart.sum(axis=1) if head.scoring == "softmax" else apart.max(axis=1)
    other = _decided_otherwise(expected, found, head)
    order = np.lexsort((np.arange(len(p)), -distance, ~other))[:count]
    known = targets if targets is not None and len(targets) == len(p) else (None,) * len(p)
    return tuple(
        Disagreement(
            image=reference.images[row],
            target=_class(known[row]),
            reference=_prediction(p[row], apart[row], head),
            candidate=_prediction(q[row], apart[row], head),
            distance=float(distance[row]),
            same_decision=not other[row],
        )
        for row in (int(value) for value in order)
    )


def _decided_otherwise(expected: NDArray[np.generic], found: NDArray[np.generic], head: Head) -> NDArray[np.bool_]:
    first, second = head.decisions(expected), head.decisions(found)
    if first is None or second is None:
        return np.zeros(len(expected), dtype=np.bool_)
    differs: NDArray[np.bool_] = (first != second).reshape(len(expected), -1).any(axis=1)
    return differs


def _prediction(scores: NDArray[np.float64], apart: NDArray[np.float64], head: Head) -> Prediction:
    index = int((scores if head.scoring == "softmax" else apart).argmax())
    return Prediction(index, float(scores[index]))


def _class(target: object) -> int | None:
    return target if isinstance(target, int) else None
