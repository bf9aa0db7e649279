"""Classes to match labels to, and the labels that are found for images that need not exist."""

from __future__ import annotations

from pathlib import Path

from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.find import find_labels
from vitexport.inputs.labels.targets import Labels

__all__ = ["PETS", "SEVERAL", "TEN", "found"]

PETS = Classes(3, ("cat", "dog", "polar bear"))
SEVERAL = Classes(3, PETS.names, scoring="sigmoid")
TEN = Classes(10)


def found(folder: Path, names: list[str], classes: Classes = PETS, **asked: object) -> Labels:
    labels = find_labels(folder, [folder / name for name in names], classes, **asked)  # type: ignore[arg-type]
    assert labels is not None
    return labels
