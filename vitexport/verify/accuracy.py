"""Top-1 and top-5 on labelled images, and how sure one can be of a difference.

Labels come from a JSON file in one of three forms: ``{"images": [{"file": ..., "label": 3}, ...]}`` (a manifest),
``{"file name": 3, ...}``, or ``{"synset": {"index": 3, ...}, ...}`` where a file name starts with the synset and an
underscore (ImageNet). Without a file, class folders are numbered in sorted order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import ImageError
from vitexport.tensors import Array

__all__ = ["Accuracy", "PairedDifference", "accuracy", "compare_top1", "find_labels", "top1"]


@dataclass(frozen=True)
class Accuracy:
    """Shares of images, 0 to 1, whose class is the first or among the first five."""

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


def accuracy(logits: Array, labels: Sequence[int]) -> Accuracy:
    """Score ``[N, C]`` logits against N class indices."""
    scores = np.asarray(logits)
    truth = np.asarray(labels)[:, None]
    best = np.argsort(-scores.astype(np.float64), axis=-1, kind="stable")[:, :5]
    return Accuracy(
        images=len(scores),
        top1=float((best[:, :1] == truth).any(axis=1).mean()),
        top5=float((best == truth).any(axis=1).mean()),
    )


def compare_top1(reference: Array, candidate: Array, labels: Sequence[int]) -> PairedDifference:
    """Compare two models' ``[N, C]`` logits on the same labelled images with McNemar's exact test."""
    truth = np.asarray(labels)
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


def find_labels(folder: Path, paths: Sequence[Path], labels_file: Path | None = None) -> tuple[int, ...] | None:
    """Find the class index of every image.

    Args:
        folder: The image folder the paths were listed from.
        paths: The images.
        labels_file: JSON file in one of the forms above; None looks for ``manifest.json`` in the folder and its parent,
            then for class folders.

    Returns:
        One index per path, or None when the images are unlabelled.

    Raises:
        ImageError: The file cannot be read, or does not cover every image.
    """
    if labels_file is None:
        beside = (folder / "manifest.json", folder.parent / "manifest.json")
        labels_file = next((path for path in beside if path.is_file()), None)
    if labels_file is not None:
        lookup = _read_labels(labels_file)
        return tuple(_label_of(path, folder, labels_file, lookup) for path in paths)
    parents = [path.relative_to(folder).parts[:-1] for path in paths]
    if not all(len(parts) == 1 for parts in parents):
        return None
    classes = {name: index for index, name in enumerate(sorted({parts[0] for parts in parents}))}
    return tuple(classes[parts[0]] for parts in parents)


def _read_labels(path: Path) -> Mapping[str, int]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if "images" in data:
            return _with_bare_names({str(entry["file"]): int(entry["label"]) for entry in data["images"]})
        return {key: _index(value) for key, value in data.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(
            f"Expected labels in '{path}', found: {error!r}",
            'Write {"images": [{"file": "a.png", "label": 3}]} or {"a.png": 3} or {"synset": {"index": 3}}.',
        ) from error


def _with_bare_names(labels: Mapping[str, int]) -> dict[str, int]:
    """Add every file's bare name, unless files of that name in several folders have different labels."""
    by_name: dict[str, set[int]] = {}
    for file, label in labels.items():
        by_name.setdefault(Path(file).name, set()).add(label)
    return {name: found.pop() for name, found in by_name.items() if len(found) == 1} | dict(labels)


def _index(value: Any) -> int:
    return int(value["index"] if isinstance(value, Mapping) else value)


def _label_of(path: Path, folder: Path, labels_file: Path, lookup: Mapping[str, int]) -> int:
    relative = path.relative_to(folder)
    inside = f"{folder.name}/{relative.as_posix()}"
    for key in (relative.as_posix(), inside, path.name, path.stem, path.name.partition("_")[0], *relative.parts[:-1]):
        if key in lookup:
            return lookup[key]
    raise ImageError(
        f"Expected a label for '{relative}' in '{labels_file}', found none.",
        "Add the file name, or leave the image out of the folder.",
    )
