"""The attention scale folds into the query projection."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import is_constant, scalar_of, sizes_of
from vitexport.host.graph.layers import LinearLayer, find_attention, linear_at
from vitexport.host.graph.passes.layer_scale import scale_columns

__all__ = ["AttentionScale"]

_VIEWS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand"})
_LINEAR = frozenset({"Add", "Sub", "Concat", "Neg", "Mul"})


class AttentionScale(ir.passes.InPlacePass):
    """Fold ``(q * s) @ k^T`` and ``(q @ k^T) * s`` into q's columns of the projection.

    Holds wherever q reaches the scores by operations that are linear in it: views, and rotary embeddings. Requires
    linear layers as MatMul + Add; ensures that no foldable factor is left between projection and softmax.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every scalar factor on q, k or the scores."""
        changed = False
        for attention in find_attention(model):
            while (scaled := _factor(attention.scores)) is not None:
                node, data, factor, columns = scaled
                _scale(model.graph, columns, factor)
                node.outputs[0].replace_all_uses_with(data)
                model.graph.remove(node, safe=True)
                changed = True
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing foldable is left."""
        left = [a.name for a in find_attention(model) if _factor(a.scores) is not None]
        if left:
            raise ir.passes.PostconditionError(f"Expected the attention scale to be folded, found it in {left[:3]}.")


_Columns = tuple[LinearLayer, int, int]


def _factor(scores: ir.Node) -> tuple[ir.Node, ir.Value, float, _Columns] | None:
    """Return (node to drop, its data, factor, columns to scale) for one factor around the scores."""
    for node in scores.outputs[0].consumers():
        scaled = _by_scalar(node)
        if scaled is not None and _is_read_once(scores.outputs[0]):
            for value in scores.inputs:
                columns = _source(value, scores)
                if columns is not None:
                    return node, scaled[0], scaled[1], columns
    for value in scores.inputs:
        on_path = _on_path(value)
        if on_path is not None:
            node, data, factor = on_path
            columns = _source(node.outputs[0], next(iter(node.outputs[0].consumers())))
            if columns is not None:
                return node, data, factor, columns
    return None


def _by_scalar(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return (data, factor) if ``node`` multiplies or divides by one number."""
    if node.op_type not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    data, other = node.inputs
    factor = scalar_of(other)
    if factor is None and node.op_type == "Mul":
        data, other = other, data
        factor = scalar_of(other)
    if factor is None or data is None or is_constant(data) or not math.isfinite(factor) or factor == 0:
        return None
    if data.shape is None or node.outputs[0].shape is None or len(data.shape) != len(node.outputs[0].shape):
        return None  # a factor of more axes than the data gives the product further ones
    if node.outputs[0].is_graph_output():
        return None
    return data, factor if node.op_type == "Mul" else 1 / factor


def _is_read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _on_path(value: ir.Value | None) -> tuple[ir.Node, ir.Value, float] | None:
    """Return the first scalar factor met going back from the scores through views."""
    while value is not None and (node := value.producer()) is not None and _is_read_once(value):
        scaled = _by_scalar(node)
        if scaled is not None:
            return node, *scaled
        if node.op_type not in _VIEWS:
            return None
        value = node.inputs[0]
    return None


def _source(value: ir.Value | None, end: ir.Node) -> _Columns | None:
    """Return the projection columns that ``value`` is a linear function of, and that nothing but ``end`` depends on."""
    inside: set[ir.Node] = {end}
    values: list[ir.Value] = []
    starts: dict[ir.Value, _Columns] = {}
    pending = [value]
    while pending:
        current = pending.pop()
        node = None if current is None else current.producer()
        if current is None or node is None:
            return None
        values.append(current)
        columns = _columns_of(current)
        if columns is not None:
            starts[current] = columns
            continue
        if node in inside:
            continue
        inside.add(node)
        if node.op_type in _VIEWS:
            pending.append(node.inputs[0])
        elif node.op_type in _LINEAR:
            variable = [v for v in node.inputs if not is_constant(v)]
            if len(variable) != (1 if node.op_type == "Mul" else len(node.inputs)):
                return None
            pending.extend(variable)
        elif node.op_type == "Split":
            pending.append(node.inputs[0])
            values.extend(node.outputs)
        else:
            return None
    if len(starts) != 1 or any(v.is_graph_output() or any(u.node not in inside for u in v.uses()) for v in values):
        return None
    return next(iter(starts.values()))


def _columns_of(value: ir.Value) -> _Columns | None:
    """Return (projection, first column, end column) if ``value`` is a projection's output or a part split off it."""
    node = value.producer()
    if node is None:
        return None
    start, width = 0, 0
    if node.op_type == "Split" and node.inputs[0] is not None and value.shape is not None:
        index = list(node.outputs).index(value)
        sizes = [output.shape[-1] if output.shape is not None else None for output in node.outputs]
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        if not all(isinstance(size, int) for size in sizes) or axis not in (-1, len(value.shape) - 1):
            return None
        known = [int(size) for size in sizes if isinstance(size, int)]
        start, width = sum(known[:index]), known[index]
        node = node.inputs[0].producer()
    layer = _layer_ending_at(node)
    if layer is None or layer.weight.const_value is None or not (layer.bias is None or is_constant(layer.bias)):
        return None
    total = sizes_of(layer.weight.const_value)[1]
    return layer, start, start + (width or total)


def _layer_ending_at(node: ir.Node | None) -> LinearLayer | None:
    if node is None:
        return None
    candidates = [node, *(v.producer() for v in node.inputs if v is not None)] if node.op_type == "Add" else [node]
    for candidate in candidates:
        if candidate is not None and candidate.op_type == "MatMul" and linear_at(candidate) is not None:
            layer = LinearLayer.of(candidate)
            if layer is not None and (layer.add or layer.matmul) is node:
                return layer
    return None


def _scale(graph: ir.Graph, columns: _Columns, factor: float) -> None:
    layer, start, end = columns
    assert layer.weight.const_value is not None
    total = sizes_of(layer.weight.const_value)[1]

    def factors() -> NDArray[np.float64]:
        vector = np.ones(total)
        vector[start:end] = factor
        return vector

    scale_columns(graph, layer.matmul, layer.weight, layer.add, layer.bias, factors)
