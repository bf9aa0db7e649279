"""Masks that mask nothing go: a tensor that holds one number everywhere, whatever its size, is that number."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitexport.host.graph.constants import array_of, shape_of

__all__ = ["FoldUniform"]

_SAME = frozenset({"Expand", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity", "Tile"})


class FoldUniform(ir.passes.InPlacePass):
    """Remove Where with a constant condition, Add of zeros and Mul by ones, also when their size is dynamic.

    Hugging Face models build an attention mask of the size of the batch even when there is nothing to mask. Requires
    shapes on values; ensures that no Add or Mul with a uniform neutral operand of no larger shape is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Follow uniform tensors through the graph and drop what they leave unchanged."""
        uniform = _uniform_values(model.graph)
        changed = False
        for node in model.graph:
            kept = _kept(node, uniform)
            if kept is not None and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(kept)
                changed = True
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check that no neutral operation is left in use."""
        uniform = _uniform_values(model.graph)
        left = [n.name for n in model.graph if _kept(n, uniform) is not None and n.outputs[0].uses()]
        if left:
            raise ir.passes.PostconditionError(f"Expected neutral operations to be gone, found {left[:3]}.")


def _uniform_values(graph: ir.Graph) -> dict[ir.Value, float]:
    """Return the number each uniform value holds in every element."""
    known: dict[ir.Value, float] = {}

    def number(value: ir.Value | None) -> float | None:
        if value is None:
            return None
        if value not in known and value.const_value is not None and value.const_value.nbytes <= 1 << 20:
            array = array_of(value)
            if array is not None and array.size and array.dtype.kind in "fbiu" and np.all(array == array.flat[0]):
                known[value] = float(array.flat[0])
        return known.get(value)

    for value in graph.initializers.values():
        number(value)
    for node in graph:
        source = number(node.inputs[0]) if node.inputs else None
        if node.op_type in _SAME and source is not None:
            known[node.outputs[0]] = source
        elif node.op_type == "Where" and source is not None:
            chosen = number(node.inputs[1 if source else 2])
            if chosen is not None:
                known[node.outputs[0]] = chosen
        elif node.op_type == "Not" and source is not None:
            known[node.outputs[0]] = float(not source)
        elif node.op_type in ("And", "Or"):
            numbers = [number(v) for v in node.inputs]
            decided = 0.0 if node.op_type == "And" else 1.0
            if decided in numbers:
                known[node.outputs[0]] = decided
            elif None not in numbers:
                known[node.outputs[0]] = 1.0 - decided
    return known


def _kept(node: ir.Node, uniform: dict[ir.Value, float]) -> ir.Value | None:
    """Return the input that a neutral node passes on unchanged, or None."""
    output = shape_of(node.outputs[0])
    if output is None:
        return None
    if node.op_type == "Where" and node.inputs[0] in uniform:
        candidates = [node.inputs[1 if uniform[node.inputs[0]] else 2]]
    elif node.op_type in ("Add", "Mul") and len(node.inputs) == 2:
        neutral = 0.0 if node.op_type == "Add" else 1.0
        first, second = node.inputs
        candidates = [a for a, b in ((first, second), (second, first)) if b is not None and uniform.get(b) == neutral]
    else:
        return None
    passes_on = (v for v in candidates if v is not None and (shape_of(v) == output or _broadcast_later(node, v)))
    return next(passes_on, None)


def _broadcast_later(node: ir.Node, value: ir.Value) -> bool:
    """Return whether every consumer brings ``value`` to its own result's shape even without ``node``.

    A mask of zeros of the batch's size, added to a position bias of one image, only repeats the bias; the scores that
    the sum is added to have that size already.
    """
    shape = shape_of(value)
    for use in node.outputs[0].uses():
        if use.node.op_type not in ("Add", "Mul", "Sub", "Div"):
            return False
        other = shape_of(use.node.inputs[1 - use.idx])
        if shape is None or other is None or other != shape_of(use.node.outputs[0]) or len(shape) > len(other):
            return False
    return not node.outputs[0].is_graph_output()
