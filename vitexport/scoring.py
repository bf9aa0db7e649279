"""What a model's outputs mean: the task, what turns logits into scores, and what an answer decides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import RecipeError
from vitexport.tensors import Array

__all__ = [
    "Head",
    "Scoring",
    "Task",
    "default_scoring",
    "require_scoring",
    "score_outputs",
    "sigmoid",
    "softmax",
]

Task = Literal["classify", "segment", "depth", "features"]

Scoring = Literal["softmax", "sigmoid", "none"]
"""``softmax`` for one class of several, ``sigmoid`` for labels that are each there or not (also a single one), ``none``
for values as they are, as in a regression."""


def default_scoring(outputs: int) -> Scoring:
    """Return the function of a head that says nothing of itself, as ``transformers.pipeline`` chooses it.

    Args:
        outputs: How many numbers the head gives for an image.
    """
    return "sigmoid" if outputs == 1 else "softmax"


def require_scoring(asked: Scoring | None, task: Task, outputs: int | str, where: str) -> None:
    """Refuse a scoring that means nothing for a model: of one output, whose softmax is always 1, or of no classifier.

    Args:
        asked: What a person asked for; None asks for nothing.
        task: Of the model.
        outputs: How many numbers its head gives for an image.
        where: What the message calls it.

    Raises:
        RecipeError: The scoring does not fit.
    """
    if asked is None:
        return
    if task != "classify":
        raise RecipeError(
            f"Expected a classifier for the scoring {asked}, found '{where}', a model for the task {task}.",
            "Leave the scoring out (--scoring, model.scoring).",
        )
    if asked == "softmax" and outputs == 1:
        raise RecipeError(
            f"Expected several outputs for a softmax, found the one of '{where}', which would always score 1.",
            "Use sigmoid for a label that is there or not, or none for a value.",
        )


def softmax(logits: Array) -> NDArray[np.float64]:
    """Return the softmax over the last axis, in double precision, shifted by the maximum so that nothing overflows."""
    values = np.asarray(logits, dtype=np.float64)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: Array) -> NDArray[np.float64]:
    """Return ``1 / (1 + exp(-x))`` of each element, in double precision; no element overflows."""
    values = np.asarray(logits, dtype=np.float64)
    powers = np.exp(-np.abs(values))
    result: NDArray[np.float64] = np.where(values >= 0, 1.0, powers) / (1.0 + powers)
    return result


def score_outputs(logits: Array, scoring: Scoring) -> NDArray[np.float64]:
    """Return the scores of ``[..., outputs]`` logits: probabilities, or with ``none`` the values themselves."""
    if scoring == "none":
        return np.asarray(logits, dtype=np.float64)
    return softmax(logits) if scoring == "softmax" else sigmoid(logits)


@dataclass(frozen=True)
class Head:
    """How a model's outputs are read.

    Attributes:
        task: What the model was exported for.
        scoring: What turns a classifier's logits into scores.
        threshold: Sigmoid score from which a label counts as there, between 0 and 1.
    """

    task: Task = "classify"
    scoring: Scoring = "softmax"
    threshold: float = 0.5

    def main_output(self, outputs: Mapping[str, Array]) -> Array | None:
        """Return the output that answers are read from: ``logits``, or the only one; None where none is that.

        A classifier's is ``[N, outputs]``, of a softmax at least two; a segmentation's ``[N, classes, H, W]``.
        """
        found = outputs.get("logits")
        if found is None and len(outputs) == 1:
            found = next(iter(outputs.values()))
        axes = {"classify": 2, "segment": 4}.get(self.task)
        if found is None or found.ndim != axes:
            return None
        return None if found.shape[1] == 1 and self.scoring == "softmax" else found

    def decisions(self, output: Array, *, scored: bool = False) -> NDArray[np.int64] | None:
        """Return what an output decides, one row per image, or None where it decides nothing.

        Args:
            output: Of the form that :meth:`main_output` returns; any other decides nothing.
            scored: Whether it holds scores already, and not logits.

        Returns:
            The class ``[N]`` of a softmax, ``[N, labels]`` of 0 and 1 of a sigmoid, the class of each place
            ``[N, H, W]`` of a segmentation.
        """
        values = self.main_output({"logits": np.asarray(output)})
        if values is None or (self.task == "classify" and self.scoring == "none"):
            return None
        if self.task == "classify" and self.scoring == "sigmoid":
            # Logits are compared as such, where no rounding of the sigmoid can move one over the threshold.
            limit = self.threshold if scored else math.log(self.threshold / (1 - self.threshold))
            return np.greater_equal(values, limit).astype(np.int64)
        classes: NDArray[np.int64] = values.argmax(axis=1).astype(np.int64)
        return classes

    def agreement(self, expected: Array, found: Array, *, scored: bool = False) -> float | None:
        """Return the fraction of equal decisions, 0 to 1: of images, of labels or of places; None without decisions."""
        first, second = self.decisions(expected, scored=scored), self.decisions(found, scored=scored)
        return None if first is None or second is None else float((first == second).mean())
