"""LayerScale folds into the linear layer before it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import add_lazy_initializer, is_constant, sizes_of
from vitexport.host.graph.layers import linear_at

__all__ = ["LayerScale", "scale_columns"]


class LayerScale(ir.passes.InPlacePass):
    """Fold ``gamma * (x @ W + b)`` into ``x @ (W * gamma) + b * gamma``.

    LayerScale is in "Going deeper with Image Transformers" (arXiv:2103.17239), section 2. Requires linear layers as
    MatMul + Add; ensures that none is followed by a multiplication with a vector of its width.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every per-channel factor whose linear layer has no other consumer."""
        changed = False
        for node in tuple(model.graph):
            scaled = _scaled(node)
            if scaled is not None:
                matmul, weight, add, bias, gamma = scaled
                tensor = gamma.const_value
                assert tensor is not None
                scale_columns(model.graph, matmul, weight, add, bias, partial(_vector, tensor))
                end, old = (add or matmul).outputs[0], node.outputs[0]
                if old.is_graph_output():
                    end.name = old.name
                old.replace_all_uses_with(end, replace_graph_outputs=True)
                model.graph.remove(node, safe=True)
                changed = True
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check that no foldable factor is left."""
        left = [node.name for node in model.graph if _scaled(node) is not None]
        if left:
            raise ir.passes.PostconditionError(f"Expected LayerScale to be folded, found {left[:3]}.")


def _vector(tensor: ir.TensorProtocol) -> NDArray[np.generic]:
    return tensor.numpy().reshape(-1)


def _scaled(node: ir.Node) -> tuple[ir.Node, ir.Value, ir.Node | None, ir.Value | None, ir.Value] | None:
    """Return (MatMul, weight, bias Add, bias, factor) if ``node`` scales a linear layer's output per channel."""
    if node.op_type != "Mul" or len(node.inputs) != 2:
        return None
    for data, gamma in (node.inputs, reversed(node.inputs)):
        end = None if data is None else data.producer()
        if (
            data is None
            or end is None
            or gamma is None
            or not is_constant(gamma)
            or len(data.uses()) != 1
            or data.is_graph_output()
        ):
            continue
        matmul = end
        if end.op_type == "Add":
            producers = [p for v in end.inputs if v is not None and (p := v.producer()) is not None]
            if len(producers) != 1:
                continue
            matmul = producers[0]
        parts = linear_at(matmul) if matmul.op_type == "MatMul" else None
        if parts is None or (end is not matmul and parts[1] is not end) or (end is matmul and parts[1] is not None):
            continue
        constant = all(value is None or is_constant(value) for value in (parts[0], parts[2]))
        if constant and _is_per_channel(gamma, parts[0], data):
            return matmul, *parts, gamma
    return None


def _is_per_channel(gamma: ir.Value, weight: ir.Value, data: ir.Value) -> bool:
    """Return whether a constant holds one number for each column of a weight ``[in, out]``, along the last axis of the
    data, and gives it no further axes.
    """
    assert gamma.const_value is not None and weight.const_value is not None
    sizes, kernel = sizes_of(gamma.const_value), sizes_of(weight.const_value)
    rank = len(kernel) if data.shape is None else len(data.shape)
    return 0 < len(sizes) <= rank and gamma.const_value.size == kernel[-1] == sizes[-1]


def scale_columns(
    graph: ir.Graph,
    matmul: ir.Node,
    weight: ir.Value,
    add: ir.Node | None,
    bias: ir.Value | None,
    factor: Callable[[], NDArray[np.generic]],
) -> None:
    """Multiply a linear layer's outputs by ``factor()``, one number per output channel, computed in float64.

    Args:
        graph: The graph.
        matmul: The layer's MatMul.
        weight: Its weight ``[in, out]``.
        add: Its bias Add, or None.
        bias: Its bias ``[out]``, or None.
        factor: Returns the factors ``[out]``; called when the weight is read.
    """
    for node, value in ((matmul, weight), (add, bias)):
        if node is None or value is None:
            continue
        tensor = value.const_value
        assert tensor is not None

        def compute(source: ir.TensorProtocol = tensor) -> NDArray[np.generic]:
            array = source.numpy()
            return (array.astype(np.float64) * np.asarray(factor(), dtype=np.float64)).astype(array.dtype)

        shape = sizes_of(tensor)
        scaled = add_lazy_initializer(graph, str(value.name), compute, tensor.dtype, shape)
        node.replace_input_with(list(node.inputs).index(value), scaled)
