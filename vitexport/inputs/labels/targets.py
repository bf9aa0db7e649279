"""The labels of images as a model's outputs understand them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitexport.inputs.labels.match import RULES, Rule

__all__ = ["Labels", "Mapped", "Target", "class_targets", "read_targets"]

Target = int | float | tuple[int, ...] | tuple[float, ...]
"""What is true of one image: the index of its class (softmax); the indices of the labels that are there, ascending
(sigmoid, also with a single output); a value, or with several outputs one for each (a regression)."""


@dataclass(frozen=True)
class Mapped:
    """What one value of the labels was taken for.

    Attributes:
        value: As it is written, e.g. the name of a folder.
        index: Index of the output; None for the absence of a single label.
        name: Name of the class.
        rule: What made the two match.
        images: How many images have it.
    """

    value: str
    index: int | None
    name: str
    rule: Rule
    images: int


@dataclass(frozen=True)
class Labels:
    """The labels of images, matched to a model's outputs.

    Attributes:
        origin: Where they come from, e.g. ``class folders``.
        targets: What is true of each image, in the order of the images.
        mapping: Each value once, by index; empty for a regression.
        notes: What a reader should know of the match, one sentence each.
    """

    origin: str
    targets: tuple[Target, ...]
    mapping: tuple[Mapped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rule(self) -> Rule:
        """The loosest rule that was needed."""
        return max((entry.rule for entry in self.mapping), key=RULES.index, default="value")

    def __str__(self) -> str:
        """Return origin, rule and notes as one sentence."""
        told = "".join(f"; {note}" for note in self.notes)
        return f"{self.origin}, matched by {self.rule}{told}"


def class_targets(targets: Sequence[object] | None) -> tuple[int, ...] | None:
    """Return the class index of each image; None where there are no labels, or others than one class per image."""
    if targets is None:
        return None
    classes = tuple(target for target in targets if isinstance(target, int))
    return classes if len(classes) == len(targets) else None


def read_targets(data: Sequence[Any] | None) -> tuple[Target, ...] | None:
    """Return targets from what JSON made of them."""
    if data is None:
        return None
    return tuple(tuple(target) if isinstance(target, list | tuple) else target for target in data)
