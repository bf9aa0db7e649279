"""Image processors of segmentation and depth models: what of them brings every image to one size, and what does not."""

from __future__ import annotations

import math
from typing import Any

from vitexport.errors import ModelSourceError

__all__ = ["DENSE", "fixed_size"]

DENSE = frozenset(
    {
        *("SegformerImageProcessor", "DPTImageProcessor", "MobileViTImageProcessor"),
        *("MaskFormerImageProcessor", "Mask2FormerImageProcessor"),
    }
)
"""Processors whose steps are those of PreprocessSpec, where they bring every image to one size."""


def fixed_size(processor: Any, kind: str, asked: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the (height, width) that a processor of :data:`DENSE` squashes every image to.

    A processor that keeps the aspect ratio gives every image a size of its own. Exported for one size, a model gets
    images squashed to it: for square ones, what the library does.

    Args:
        processor: The image processor.
        kind: Name of its class.
        asked: The size that replaces the checkpoint's own, or None.

    Returns:
        None where it does not squash, but crops (MobileViT).

    Raises:
        ModelSourceError: It gives images sizes of their own and none was asked for, or pads the size.
    """
    size = processor.size
    if kind == "MobileViTImageProcessor" or not processor.do_resize:
        return None
    varies = getattr(processor, "keep_aspect_ratio", False) or not (size.height and size.width)
    if varies and asked is None:
        raise ModelSourceError(
            f"Expected an image processor that brings every image to one size, but this {kind} keeps the aspect ratio "
            "and gives each a size of its own.",
            "Name one size that all images are squashed to with `--image-size H W` (`export.image_size` in a recipe), "
            "such as the one the model was trained at; square images are then treated as the library does.",
        )
    given = asked or (int(size.height), int(size.width))
    wanted = tuple(_rounded(edge, processor, kind) for edge in given)
    if asked is not None and wanted != asked:
        raise ModelSourceError(
            f"Expected an image size that {kind} keeps as it is, found {asked[0]} x {asked[1]}, which it makes "
            f"{wanted[0]} x {wanted[1]}.",
            f"Use `--image-size {wanted[0]} {wanted[1]}`.",
        )
    return wanted[0], wanted[1]


def _rounded(edge: int, processor: Any, kind: str) -> int:
    """Return an edge as the processor rounds it, in pixels.

    Raises:
        ModelSourceError: It pads the edge.
    """
    divisor = int(getattr(processor, "size_divisor", 0) or 0)
    if kind != "DPTImageProcessor":
        return math.ceil(edge / divisor) * divisor if divisor else edge
    multiple = int(processor.ensure_multiple_of or 1)
    edge = round(edge / multiple) * multiple
    if processor.do_pad and divisor and edge % divisor:
        raise ModelSourceError(
            f"Expected a {kind} without padding, found one that pads {edge} pixels to a multiple of {divisor}.",
            f"Use an image size of multiples of {divisor}.",
        )
    return edge
