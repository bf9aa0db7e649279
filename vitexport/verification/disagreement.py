"""Which images two variants disagree on most, and what each of them said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.bundle.recording import Recording
from vitexport.verification.parity import class_scores

__all__ = ["Disagreement", "Prediction", "worst_images"]


@dataclass(frozen=True)
class Prediction:
    """The first class of an answer and the softmax probability it gets."""

    index: int
    probability: float


@dataclass(frozen=True)
class Disagreement:
    """One image and what reference and candidate made of it.

    Attributes:
        image: Name of the image.
        target: Its true class, or None when unlabelled.
        reference: What PyTorch said.
        candidate: What the variant under test said.
        distance: Total variation distance of the two softmax distributions, 0 (equal) to 1 (nothing in common).
    """

    image: str
    target: int | None
    reference: Prediction
    candidate: Prediction
    distance: float

    @property
    def same_class(self) -> bool:
        """Whether both chose the same class."""
        return self.reference.index == self.candidate.index


def worst_images(
    reference: Recording, candidate: Recording, targets: Sequence[int] | None = None, *, count: int = 8
) -> tuple[Disagreement, ...]:
    """Return the images whose answers differ most: other classes first, then by distance.

    Args:
        reference: Recording of PyTorch.
        candidate: Recording of the variant under test, of the same images.
        targets: Class index per image, or None.
        count: At most so many.

    Returns:
        Empty when the outputs hold no class scores or cannot be compared.
    """
    expected, found = class_scores(reference.outputs), class_scores(candidate.outputs)
    if expected is None or found is None or expected.shape != found.shape or reference.images != candidate.images:
        return ()
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return ()
    p, q = _softmax(expected), _softmax(found)
    distance = 0.5 * np.abs(p - q).sum(axis=1)
    other = p.argmax(axis=1) != q.argmax(axis=1)
    order = np.lexsort((np.arange(len(p)), -distance, ~other))[:count]
    known = targets if targets is not None and len(targets) == len(p) else None
    return tuple(
        Disagreement(
            image=reference.images[row],
            target=None if known is None else known[row],
            reference=_first(p[row]),
            candidate=_first(q[row]),
            distance=float(distance[row]),
        )
        for row in (int(value) for value in order)
    )


def _first(probabilities: NDArray[np.float64]) -> Prediction:
    index = int(probabilities.argmax())
    return Prediction(index, float(probabilities[index]))


def _softmax(logits: NDArray[np.generic]) -> NDArray[np.float64]:
    shifted = np.asarray(logits, dtype=np.float64)
    exponent = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = exponent / exponent.sum(axis=1, keepdims=True)
    return result
