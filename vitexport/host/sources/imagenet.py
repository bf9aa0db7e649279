"""Which synset each class of an ImageNet model is: recognised by its class names, and looked up in timm's lists."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["synsets_of"]

# Subsets whose order of classes is that of published models; timm's name for each.
_SUBSETS = ("imagenet-1k", "imagenet-12k", "imagenet-22k", "imagenet-21k-goog", "imagenet-21k-miil")

_ENOUGH = 0.9
"""Fraction of names that must agree; the lists in circulation spell some classes differently."""


def synsets_of(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the WordNet id of each class, or nothing where the names are not ImageNet's in ImageNet's order.

    Args:
        class_names: By output index; a name agrees with a synset that has it, or one of its comma-separated parts, as a
            lemma.
    """
    if len(class_names) < 1000 or importlib.util.find_spec("timm") is None:
        return ()
    from timm.data.imagenet_info import ImageNetInfo

    for subset in _SUBSETS:
        info: Any = ImageNetInfo(subset)
        if info.num_classes() != len(class_names):
            continue
        agree = sum(
            not _lemmas(name).isdisjoint(_lemmas(info.index_to_description(index)))
            for index, name in enumerate(class_names)
        )
        if agree >= _ENOUGH * len(class_names):
            return tuple(info.label_names())
    return ()


def _lemmas(name: str) -> frozenset[str]:
    return frozenset(re.sub(r"[\s_-]+", " ", part).strip().casefold() for part in name.split(","))
