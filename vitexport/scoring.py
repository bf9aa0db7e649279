"""What turns a head's outputs into scores: softmax, sigmoid, or nothing."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitexport.tensors import Array

__all__ = ["Scoring", "default_scoring", "score_outputs", "sigmoid", "softmax"]

Scoring = Literal["softmax", "sigmoid", "none"]
"""``softmax`` for one class of several, ``sigmoid`` for labels that are each there or not (also a single one), ``none``
for values as they are, as in a regression."""


def default_scoring(outputs: int) -> Scoring:
    """Return the function of a head that says nothing of itself, as ``transformers.pipeline`` chooses it.

    Args:
        outputs: How many numbers the head gives for an image.
    """
    return "sigmoid" if outputs == 1 else "softmax"


def softmax(logits: Array) -> NDArray[np.float64]:
    """Return the softmax over the last axis, in double precision, shifted by the maximum so that nothing overflows."""
    values = np.asarray(logits, dtype=np.float64)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: Array) -> NDArray[np.float64]:
    """Return ``1 / (1 + exp(-x))`` of each element, in double precision, by a form that never overflows."""
    values = np.asarray(logits, dtype=np.float64)
    result: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * values))
    return result


def score_outputs(logits: Array, scoring: Scoring) -> NDArray[np.float64]:
    """Return the scores of ``[..., outputs]`` logits: probabilities, or with ``none`` the values themselves."""
    if scoring == "none":
        return np.asarray(logits, dtype=np.float64)
    return softmax(logits) if scoring == "softmax" else sigmoid(logits)
