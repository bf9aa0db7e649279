"""NaN guards after a softmax that cannot be NaN go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitexport.host.graph.constants import array_of, is_constant

__all__ = ["SoftmaxGuards"]


class SoftmaxGuards(ir.passes.InPlacePass):
    """Remove ``Where(IsNaN(p), 0, p)`` behind a softmax without a mask, or with one that leaves something in every row.

    PyTorch's fused attention turns rows that are masked entirely into zeros; exporters spell this out. Without such
    rows a softmax is NaN only if its input is, and then the guard would hide an error. Ensures that no such guard is
    left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop every guard that is provably without effect on finite inputs."""
        changed = False
        for node in model.graph:
            softmax = _guarded(node)
            if softmax is not None:
                node.outputs[0].replace_all_uses_with(softmax.outputs[0])
                changed = True
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check that no needless guard is left in use."""
        if any(_guarded(node) is not None and node.outputs[0].uses() for node in model.graph):
            raise ir.passes.PostconditionError("Expected no NaN guard behind an unmasked softmax, found one.")


def _guarded(node: ir.Node) -> ir.Node | None:
    if node.op_type != "Where" or node.outputs[0].is_graph_output():
        return None
    condition = node.inputs[0].producer() if node.inputs[0] is not None else None
    softmax = node.inputs[2].producer() if node.inputs[2] is not None else None
    if condition is None or softmax is None or condition.op_type != "IsNaN" or softmax.op_type != "Softmax":
        return None
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    rank = None if softmax.outputs[0].shape is None else len(softmax.outputs[0].shape)
    if condition.inputs[0] is not softmax.outputs[0] or axis not in (-1, None if rank is None else rank - 1):
        return None
    scores = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    if scores is None or scores.op_type == "MatMul":
        return softmax
    if scores.op_type in ("Mul", "Div"):
        return softmax if any(is_constant(v) for v in scores.inputs) else None
    if scores.op_type != "Add":
        return None
    mask = next((array_of(v) for v in scores.inputs if is_constant(v)), None)
    if mask is None or mask.dtype.kind != "f":
        return None
    rows = np.atleast_1d(mask)
    return softmax if bool(np.isfinite(rows).any(axis=-1).all()) and not np.isnan(rows).any() else None
