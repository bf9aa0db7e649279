"""What a chain of views does, found by sending element numbers through it for one image."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import array_of, shape_of

__all__ = ["IndexMap", "apply_view", "static_shape"]

IndexMap = NDArray[np.integer]


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return a value's shape with its dynamic axis (the batch, or windows of it) as 1, or None when it has several.

    Views that split or merge the dynamic axis are told apart by their number of elements, and not followed.
    """
    shape = shape_of(value)
    if shape is None or sum(not isinstance(axis, int) for axis in shape) > 1:
        return None
    return tuple(axis if isinstance(axis, int) else 1 for axis in shape)


def apply_view(node: ir.Node, source: IndexMap) -> tuple[IndexMap | None, ...]:
    """Return where each element of a view's outputs comes from, or None for an output that is no plain view.

    Args:
        node: A Reshape, Transpose, Squeeze, Unsqueeze, Slice, Gather or Split whose first input is the viewed tensor.
        source: Element numbers of its first input, for one image.
    """
    kind = node.op_type
    if kind in ("Reshape", "Squeeze", "Unsqueeze"):
        shape = static_shape(node.outputs[0])
        return (source.reshape(shape) if shape is not None and np.prod(shape) == source.size else None,)
    if kind == "Transpose":
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        return (source.transpose(order),)
    if kind == "Gather":
        index = array_of(node.inputs[1])
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return (None if index is None else np.take(source, index.astype(np.int64), axis=axis),)
    if kind == "Slice":
        return (_slice(node, source),)
    if kind == "Split":
        sizes = [static_shape(output) for output in node.outputs]
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        if any(size is None for size in sizes):
            return tuple(None for _ in node.outputs)
        ends = np.cumsum([size[axis] for size in sizes if size is not None])
        return tuple(np.split(source, ends[:-1], axis=axis)) if ends[-1] == source.shape[axis] else (None,) * len(sizes)
    return tuple(None for _ in node.outputs)


def _slice(node: ir.Node, source: IndexMap) -> IndexMap | None:
    values = [array_of(value) for value in node.inputs[1:]]
    if any(value is None for value in values):
        return None
    starts, ends, *rest = [value.astype(np.int64).tolist() for value in values if value is not None]
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    if any(step <= 0 for step in steps):
        return None
    region = [slice(None)] * source.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        region[axis] = slice(start, end, step)
    return source[tuple(region)]
