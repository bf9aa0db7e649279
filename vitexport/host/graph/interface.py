"""The inputs and outputs of a graph: how they are described, fixed to sizes, and compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import onnx_ir as ir

from vitexport.tensors import TensorSpec

__all__ = ["fix_shapes", "input_specs", "same_or_narrower", "with_shapes_of"]


def input_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Return the inputs of a graph; an axis without a name is called after its position."""
    return tuple(_spec(value) for value in model.graph.inputs)


def _spec(value: ir.Value) -> TensorSpec:
    dtype = ir.DataType.UNDEFINED if value.dtype is None else value.dtype
    name = {"float": "float32", "double": "float64"}.get(dtype.name.lower(), dtype.name.lower())
    return TensorSpec(str(value.name), _axes(value), name)


def _axes(value: ir.Value) -> tuple[int | str, ...]:
    shape = () if value.shape is None else tuple(value.shape)
    return tuple(axis if isinstance(axis, int) else axis.value or f"axis{i}" for i, axis in enumerate(shape))


def fix_shapes(model: ir.Model, inputs: Sequence[TensorSpec]) -> None:
    """Write the sizes of inputs into a graph; an axis that shares its name with a fixed one becomes that size too.

    Args:
        model: The graph; changed in place.
        inputs: Its inputs as they shall be.
    """
    sizes: dict[str, int] = {}
    for value, wanted in zip(model.graph.inputs, inputs, strict=True):
        pairs = zip(_axes(value), wanted.shape, strict=True)
        sizes |= {name: size for name, size in pairs if isinstance(name, str) and isinstance(size, int)}
        value.shape = ir.Shape(wanted.shape)
    values = [value for node in model.graph for value in node.outputs]
    for value in (*values, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(
                sizes.get(axis.value or "", axis) if isinstance(axis, ir.SymbolicDim) else axis for axis in value.shape
            )


def same_or_narrower(found: Sequence[ir.Value], expected: Sequence[ir.Value]) -> bool:
    """Return whether tensors have the names and types of others, and their shapes or more exact ones."""
    return len(found) == len(expected) and all(
        (one.name, one.dtype) == (other.name, other.dtype)
        and (other.shape is None or (one.shape is not None and _narrows(one.shape, other.shape)))
        for one, other in zip(found, expected, strict=True)
    )


def _narrows(found: ir.Shape, expected: ir.Shape) -> bool:
    return len(found) == len(expected) and all(
        one == other or (isinstance(one, int) and isinstance(other, ir.SymbolicDim))
        for one, other in zip(found, expected, strict=True)
    )


def with_shapes_of(specs: Iterable[TensorSpec], values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    """Return specs with the shapes that a graph gives their namesakes."""
    shapes = {value.name: _axes(value) for value in values if value.shape is not None}
    return tuple(replace(spec, shape=shapes.get(spec.name, spec.shape)) for spec in specs)
