"""Two graphs of one model may compute different numbers of tokens: a simplified one only those that the head reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitexport.host.diagnose.probe import Probe

__all__ = ["common_shapes", "first_rows"]

Shape = tuple[int, ...]
Tensor = NDArray[np.generic]


def common_shapes(files: tuple[Path, Path], tensors: Collection[str], feeds: tuple[Tensor, Tensor]) -> dict[str, Shape]:
    """Return the shape a candidate has for every tensor that can be held against the reference's.

    That is every tensor of the same shape, and every one that has fewer tokens (last axis but one): those are the first
    of the reference's, the class and distillation tokens that a classifier reads.

    Args:
        files: Reference and candidate.
        tensors: Names that both have.
        feeds: One batch for each.
    """
    with Probe(files[0], tensors) as reference, Probe(files[1], tensors) as candidate:
        mine, theirs = reference.run(feeds[0]), candidate.run(feeds[1])
    return {name: theirs[name].shape for name in tensors if _comparable(mine[name].shape, theirs[name].shape)}


def first_rows(values: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Return the tensors of a reference with as many tokens as the candidate has."""
    return {
        name: value if name not in shapes or value.shape == shapes[name] else value[..., : shapes[name][-2], :]
        for name, value in values.items()
    }


def _comparable(reference: Shape, candidate: Shape) -> bool:
    if reference == candidate:
        return True
    if len(reference) != len(candidate) or len(reference) < 3:
        return False
    fewer = (*reference[:-2], candidate[-2], reference[-1])
    return candidate == fewer and candidate[-2] < reference[-2]
