"""Swin's shifted-window mask is added as a constant; it is not repeated for every image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import add_initializer, array_of, shape_of
from vitexport.host.graph.scopes import inherit_module

__all__ = ["WindowMask"]


class WindowMask(ir.passes.InPlacePass):
    """Rewrite ``scores + (bias + reshape(expand(mask)))`` as ``reshape(reshape(scores) + constant)``.

    Hugging Face repeats the mask of one image's windows to the size of the batch, by shape arithmetic inside the
    block. The scores ``[N * windows, heads, L, L]`` seen as ``[N, windows, heads, L, L]`` take the mask and the
    relative position bias as one constant. Ensures that no such repeated mask is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every masked attention."""
        changed = False
        for node in tuple(model.graph):
            masked = _masked(node)
            if masked is not None:
                _rewrite(model.graph, node, masked)
                changed = True
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing rewritable is left."""
        left = [node.name for node in model.graph if _masked(node) is not None]
        if left:
            raise ir.passes.PostconditionError(f"Expected window masks as constants, found {left[:3]}.")


@dataclass(frozen=True)
class _Masked:
    """Scores, and what is added to them: ``float[1, windows, heads or 1, L, L]``."""

    scores: ir.Value
    constant: NDArray[np.generic]
    heads: int


def _masked(node: ir.Node) -> _Masked | None:
    if node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    for scores, added in (node.inputs, reversed(node.inputs)):
        shape = shape_of(scores)
        producer = None if added is None else added.producer()
        if scores is None or scores.producer() is None or producer is None:
            continue
        if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
            continue
        bias: NDArray[np.generic] | None = None
        if producer.op_type == "Add":
            constants = [array for v in producer.inputs if (array := array_of(v)) is not None]
            behind = [p for v in producer.inputs if v is not None and (p := v.producer()) is not None]
            if len(constants) != 1 or len(behind) != 1:
                continue
            bias, producer = constants[0], behind[0]
        mask = _repeated(producer)
        if mask is None or shape[2:] != mask.shape[3:]:
            continue
        if bias is not None:
            bias = bias[None] if bias.ndim == 4 else bias
            if not _fits(bias, (1, mask.shape[1], shape[1], *mask.shape[3:])):
                continue
            mask = np.add(mask, bias)
        return _Masked(scores, mask, shape[1])
    return None


def _fits(bias: NDArray[np.generic], shape: tuple[int, ...]) -> bool:
    """Return whether a bias is broadcast to the shape of one image's windows, and gives it no further axes."""
    own = bias.shape[::-1]
    return len(own) <= len(shape) and all(a in (1, b) for a, b in zip(own, reversed(shape), strict=False))


def _repeated(node: ir.Node) -> NDArray[np.generic] | None:
    """Return the mask ``[1, windows, 1, L, L]`` that a Reshape of an Expand repeats for every image."""
    expand = node.inputs[0].producer() if node.op_type == "Reshape" and node.inputs[0] is not None else None
    mask = array_of(expand.inputs[0]) if expand is not None and expand.op_type == "Expand" else None
    result = shape_of(node.outputs[0])
    if mask is None or result is None or mask.ndim != 5 or mask.shape[0] != 1 or mask.shape[2] != 1:
        return None
    return mask if len(result) == 4 and result[1:] == (1, *mask.shape[3:]) else None


def _rewrite(graph: ir.Graph, node: ir.Node, masked: _Masked) -> None:
    windows, length = masked.constant.shape[1], masked.constant.shape[-1]
    output = node.outputs[0]
    split = add_initializer(
        graph, "windows_shape", np.array([-1, windows, masked.heads, length, length], dtype=np.int64)
    )
    joined = add_initializer(graph, "scores_shape", np.array([-1, masked.heads, length, length], dtype=np.int64))
    constant = add_initializer(graph, "window_mask", masked.constant)
    apart = ir.node("Reshape", [masked.scores, split])
    added = ir.node("Add", [apart.outputs[0], constant])
    together = ir.node("Reshape", [added.outputs[0], joined])
    for made in (apart, added, together):
        inherit_module(made, node)
        made.outputs[0].type = output.type
    batch = ir.SymbolicDim("images")
    apart.outputs[0].shape = added.outputs[0].shape = ir.Shape([batch, windows, masked.heads, length, length])
    together.outputs[0].shape = output.shape
    graph.insert_before(node, [apart, added, together])
    output.replace_all_uses_with(together.outputs[0])
    graph.remove(node, safe=True)
