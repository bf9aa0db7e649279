"""What counts in a layer's output: which columns by what they feed, and whether a class token is read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import array_of
from vitexport.host.quantize.planning.layers import QuantizedLayer

__all__ = ["column_importance", "reads_class_token"]

_PASSING = frozenset(
    {"LayerNormalization", "Squeeze", "Reshape", "Flatten", "Identity", "Gemm", "MatMul", "Add", "Tanh"}
)


def column_importance(layer: QuantizedLayer) -> NDArray[np.float32]:
    """Return the weight of each output column's squared error, ``[N]``.

    Query, key and value come out of one projection at different scales (the attention scale is folded into the query),
    so each part counts relative to its own weights' energy.
    """
    columns = layer.shape[1]
    importance = np.ones(columns, dtype=np.float32)
    for node in layer.linear.output.consumers():
        sizes = array_of(node.inputs[1]) if node.op_type == "Split" and len(node.inputs) > 1 else None
        if sizes is None or int(sizes.sum()) != columns:
            continue
        energy = np.square(layer.weight()).sum(axis=0)
        start = 0
        for size in sizes.reshape(-1):
            part = slice(start, start + int(size))
            importance[part] = 1.0 / max(float(energy[part].mean()), 1e-20)
            start += int(size)
    return importance


def reads_class_token(model: ir.Model) -> bool:
    """Return whether an output is computed from row 0 of the tokens alone (a Gather or Slice before the head)."""
    pending = [value.producer() for value in model.graph.outputs]
    seen: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _takes_first_row(node):
            return True
        if node.op_type in _PASSING:
            pending.extend(v.producer() for v in node.inputs if v is not None)
    return False


def _takes_first_row(node: ir.Node) -> bool:
    if node.op_type == "Gather":
        index = array_of(node.inputs[1])
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return index is not None and index.size == 1 and int(index.reshape(-1)[0]) == 0 and axis in (1, -2)
    if node.op_type == "Slice" and len(node.inputs) > 3:
        starts, ends, axes = (array_of(value) for value in node.inputs[1:4])
        if starts is None or ends is None or axes is None or starts.size != 1:
            return False
        return (int(starts.reshape(-1)[0]), int(ends.reshape(-1)[0]), int(axes.reshape(-1)[0])) == (0, 1, 1)
    return False
