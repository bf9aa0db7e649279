"""What labels are matched to: the outputs of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vitexport.errors import ModelSourceError
from vitexport.scoring import Scoring

__all__ = ["Classes"]


@dataclass(frozen=True)
class Classes:
    """The outputs of a classifier, by index.

    Attributes:
        count: How many there are.
        names: Class names; empty where the model has none.
        synsets: WordNet ids of the classes, e.g. ``n01440764``; empty where they are no ImageNet classes.
        scoring: ``softmax`` for one class of several, ``sigmoid`` for labels that are each there or not, ``none`` for
            values.
    """

    count: int
    names: tuple[str, ...] = ()
    synsets: tuple[str, ...] = ()
    scoring: Scoring = "softmax"

    def name(self, index: int) -> str:
        """Return the name of a class, or ``class 3`` where the model has none."""
        return self.names[index] if index < len(self.names) else f"class {index}"

    def with_names(self, names: Sequence[str], *, where: str = "") -> Classes:
        """Return the same outputs under other names.

        Args:
            names: One for each output, in order.
            where: What the error message calls their file; empty where they come from none.

        Raises:
            ModelSourceError: There are more or fewer names than outputs, or they are the model's own in another order.
        """
        place = f" in '{where}'" if where else ""
        if len(names) != self.count:
            raise ModelSourceError(
                f"Expected {self.count} class name{'s' * (self.count != 1)}{place}, one for each output of the model, "
                f"found {len(names)}.",
                "List every class, in the order of the model's outputs.",
            )
        if sorted(names) == sorted(self.names) and tuple(names) != self.names:
            index = next(i for i, (own, other) in enumerate(zip(self.names, names, strict=True)) if own != other)
            raise ModelSourceError(
                f"Expected the class names{place} in the order of the model's own, found '{names[index]}' for "
                f"output {index}, which the model calls '{self.names[index]}'.",
                "Leave them out: the model names its outputs itself, in the order it was trained with.",
            )
        return replace(self, names=tuple(names), synsets=())
