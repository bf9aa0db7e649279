"""Reading and making constants of an onnx-ir graph, with large weights kept lazy."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = [
    "SMALL",
    "add_initializer",
    "add_lazy_initializer",
    "array_of",
    "is_constant",
    "scalar_of",
    "shape_of",
    "sizes_of",
]

SMALL = 1 << 20
"""Bytes up to which a derived constant is computed at once; larger ones are computed when the file is written."""


_READING = threading.RLock()
"""onnx-ir maps a weight's file where it is first read, and fails where two threads do that at once."""


def is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is an initializer that no caller can override."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def array_of(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return a constant's content, or None when the value is no constant."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    with _READING:
        return value.const_value.numpy()


def scalar_of(value: ir.Value | None) -> float | None:
    """Return the number a one-element constant holds, or None."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    array = array_of(value)
    return None if array is None else float(array.reshape(()).item())


def sizes_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Return a tensor's shape as integers; a tensor has no dynamic axis."""
    return tuple(axis for axis in tensor.shape if isinstance(axis, int))


def shape_of(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """Return a value's shape with dynamic axes as their names, or None when its rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(axis if isinstance(axis, int) else axis.value for axis in value.shape)


def add_initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Register a new initializer under a free name that starts with ``name``."""
    return _register(graph, name, ir.tensor(array))


def add_lazy_initializer(
    graph: ir.Graph, name: str, compute: Callable[[], NDArray[np.generic]], dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.Value:
    """Register an initializer whose content is computed when it is read or written, and not kept.

    Args:
        graph: The graph.
        name: Its name; made free by a suffix.
        compute: Returns the content; called every time.
        dtype: Element type of the content.
        shape: Shape of the content.
    """
    if dtype.itemsize * int(np.prod(shape)) <= SMALL:
        return add_initializer(graph, name, compute())
    tensor = ir.LazyTensor(lambda: ir.tensor(compute()), dtype=dtype, shape=ir.Shape(shape))
    return _register(graph, name, tensor)


def _register(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    free, suffix = name, 1
    while free in graph.initializers:
        free, suffix = f"{name}_{suffix}", suffix + 1
    tensor.name = free
    value = ir.Value(name=free, shape=ir.Shape(sizes_of(tensor)), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
