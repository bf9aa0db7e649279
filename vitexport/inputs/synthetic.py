"""One smooth image for a model that brings none: something to time it on, never to judge it by."""

from __future__ import annotations

import numpy as np

from vitexport.inputs.layout import image_layout
from vitexport.inputs.shapes import feed_shape
from vitexport.tensors import Array, TensorSpec

__all__ = ["synthetic_image"]


def synthetic_image(tensor: TensorSpec) -> Array:
    """Return one row for an image input: a ramp from corner to corner, -1 to 1 in floats and 0 to 255 in integers.

    Args:
        tensor: The input, each of its axes fixed but the first.

    Raises:
        RecipeError: Another axis is dynamic, see :func:`~vitexport.inputs.shapes.feed_shape`.
    """
    _, *axes = feed_shape(tensor, 1)
    layout = image_layout(tensor)
    if layout is None:
        return np.zeros((1, *axes), dtype=tensor.dtype)
    height, width = axes[layout.height - 1], axes[layout.height]
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.linspace(0, 1, width, dtype=np.float32)
    values = 2 * ramp - 1 if tensor.dtype.startswith("float") else 255 * ramp
    planes = np.expand_dims(values, layout.channels - 1)
    return np.repeat(planes, axes[layout.channels - 1], axis=layout.channels - 1)[None].astype(tensor.dtype)
