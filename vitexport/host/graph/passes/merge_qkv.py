"""Separate query, key and value projections of one input become one MatMul and one Split."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import add_initializer, add_lazy_initializer, is_constant, sizes_of
from vitexport.host.graph.layers import Attention, LinearLayer, find_attention, origins_of
from vitexport.host.graph.scopes import MERGED_KEY, MODULE_KEY

__all__ = ["MergeQkv"]


class MergeQkv(ir.passes.InPlacePass):
    """Concatenate the weights of q, k and v where all three project the same tokens.

    One wide MatMul reads its input once, and a quantizer puts one Q there. A missing bias (BEiT's key) becomes zeros.
    Requires linear layers as MatMul + Add; ensures that no attention has three projections of one input.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge in every attention."""
        changed = False
        for attention in find_attention(model):
            layers = _separate(model, attention)
            if layers is not None:
                _merge(model.graph, layers)
                changed = True
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing mergeable is left."""
        left = [attention.name for attention in find_attention(model) if _separate(model, attention) is not None]
        if left:
            raise ir.passes.PostconditionError(f"Expected q, k and v to be merged, found them apart in {left[:3]}.")


def _separate(model: ir.Model, attention: Attention) -> tuple[LinearLayer, LinearLayer, LinearLayer] | None:
    """Return the projections of q, k and v if there are three, of the same tokens."""
    nodes = []
    for value in (*attention.scores.inputs[:2], attention.context.inputs[1]):
        origins = origins_of(value)
        if len(origins) != 1:
            return None
        nodes.append(origins[0])
    if len(set(nodes)) != 3 or len({node.inputs[0] for node in nodes}) != 1:
        return None
    layers = [LinearLayer.of(node) for node in nodes]
    known = [layer for layer in layers if layer is not None and _is_mergeable(layer)]
    if len(known) != 3:
        return None
    q, k, v = known
    return q, k, v


def _is_mergeable(layer: LinearLayer) -> bool:
    """Return whether a projection's weights can be read, and its result is used inside the graph only."""
    constant = is_constant(layer.weight) and (layer.bias is None or is_constant(layer.bias))
    inner = not any(output.is_graph_output() for output in (layer.matmul.outputs[0], layer.output))
    return constant and inner and layer.matmul.op_type == "MatMul" and layer.output.shape is not None


def _merge(graph: ir.Graph, layers: tuple[LinearLayer, LinearLayer, LinearLayer]) -> None:
    tensors = [layer.weight.const_value for layer in layers]
    biases = [None if layer.bias is None else layer.bias.const_value for layer in layers]
    first = tensors[0]
    assert first is not None
    widths = [sizes_of(tensor)[1] for tensor in tensors if tensor is not None]
    name = f"{layers[0].name.rpartition('.')[0]}.qkv".removeprefix(".")

    def weight() -> NDArray[np.generic]:
        return np.concatenate([tensor.numpy() for tensor in tensors if tensor is not None], axis=1)

    shape = (sizes_of(first)[0], sum(widths))
    matmul = ir.node(
        "MatMul",
        [layers[0].matmul.inputs[0], add_lazy_initializer(graph, f"{name}.weight", weight, first.dtype, shape)],
    )
    new = [matmul]
    if any(bias is not None for bias in biases):
        zeros = [np.zeros(width, dtype=first.numpy().dtype) for width in widths]
        parts = [zero if bias is None else bias.numpy() for bias, zero in zip(biases, zeros, strict=True)]
        bias = add_initializer(graph, f"{name}.bias", np.concatenate(parts))
        new.append(ir.node("Add", [matmul.outputs[0], bias]))
    sizes = add_initializer(graph, "qkv_sizes", np.array(widths, dtype=np.int64))
    split = ir.node("Split", [new[-1].outputs[0], sizes], {"axis": -1}, num_outputs=3)
    merged = ",".join(layer.name for layer in layers)
    reference = layers[0].output
    for node in (*new, split):
        node.name = f"{name}/{node.op_type}"
        node.metadata_props.update({MODULE_KEY: name, MERGED_KEY: merged})
        for output in node.outputs:
            output.type = reference.type
            output.shape = ir.Shape([*list(reference.shape or ())[:-1], sum(widths)])
    for layer, output, width in zip(layers, split.outputs, widths, strict=True):
        output.shape = ir.Shape([*list(reference.shape or ())[:-1], width])
        layer.output.replace_all_uses_with(output)
    order = {node: index for index, node in enumerate(graph)}
    graph.insert_before(min((layer.matmul for layer in layers), key=order.__getitem__), [*new, split])
    old = [node for layer in layers for node in (layer.add, layer.matmul) if node is not None]
    graph.remove(old, safe=True)
