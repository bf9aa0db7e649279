"""Writing Q/DQ nodes into a graph."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import add_initializer
from vitexport.host.graph.layers import find_attention
from vitexport.host.graph.scopes import inherit_module
from vitexport.host.quantize.numerics.qparams import QuantizedWeight, QuantParams
from vitexport.host.quantize.planning.attention import AttentionPlan
from vitexport.host.quantize.planning.layers import QuantizedLayer

__all__ = ["emit_activation", "emit_attention", "emit_weight", "zero_point_array"]


def zero_point_array(dtype: str, values: NDArray[np.int64]) -> NDArray[np.generic]:
    """Return zero points in the dtype of what is quantized."""
    if dtype == "float8_e4m3fn":
        zero: NDArray[np.generic] = values.astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
        return zero
    return values.astype(dtype)


def emit_activation(graph: ir.Graph, value: ir.Value, qparams: QuantParams, consumers: Sequence[ir.Node]) -> ir.Value:
    """Put one Q and one DQ on ``value`` for ``consumers`` and return the dequantized value.

    Args:
        graph: The graph.
        value: Activation to quantize.
        qparams: Its quantization parameters.
        consumers: Nodes that read it; other consumers keep the float value.
    """
    name = str(value.name)
    scale = add_initializer(graph, f"{name}.scale", np.asarray(qparams.scale, dtype=np.float32))
    zero = add_initializer(graph, f"{name}.zero_point", zero_point_array(qparams.dtype, np.asarray(qparams.zero_point)))
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}.quantize")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{name}.dequantize")
    integers = quantize.outputs[0]
    integers.name, integers.shape, integers.type = f"{name}.quantized", value.shape, zero.type
    result = dequantize.outputs[0]
    result.name, result.shape, result.type = f"{name}.dequantized", value.shape, value.type
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [inherit_module(quantize, producer), inherit_module(dequantize, producer)])
    for node in consumers:
        for index, used in enumerate(node.inputs):
            if used is value:
                node.replace_input_with(index, result)
    return result


def emit_weight(graph: ir.Graph, layer: QuantizedLayer, weight: QuantizedWeight) -> None:
    """Store a layer's weight quantized, as an initializer behind a DQ along the output-channel axis."""
    name = f"{layer.name}.weight"
    node = layer.linear.matmul
    values = np.ascontiguousarray(weight.values.T) if layer.transposed else weight.values
    dtype = values.dtype.name
    stored = add_initializer(graph, f"{name}.quantized", values)
    scale = add_initializer(graph, f"{name}.scale", weight.scale.astype(np.float32))
    zeros = zero_point_array(dtype, np.full(weight.scale.shape, weight.zero_point))
    zero = add_initializer(graph, f"{name}.zero_point", zeros)
    axis = 0 if layer.transposed else 1
    dequantize = ir.node(
        "DequantizeLinear", [stored, scale, zero], attributes={"axis": axis}, name=f"{name}.dequantize"
    )
    result = dequantize.outputs[0]
    old = node.inputs[1]
    assert old is not None
    result.name, result.shape, result.type = f"{name}.dequantized", old.shape, old.type
    graph.insert_before(node, inherit_module(dequantize, node))
    node.replace_input_with(1, result)
    if not old.uses() and old.name is not None and old.name in graph.initializers:
        del graph.initializers[old.name]


def emit_attention(model: ir.Model, plans: Sequence[AttentionPlan]) -> None:
    """Write Q/DQ before both GEMMs of the planned attentions."""
    by_name = {plan.name: plan for plan in plans}
    for one in find_attention(model):
        plan = by_name.get(one.name)
        if plan is None:
            continue
        for node, index, qparams in (
            (one.scores, 0, plan.query),
            (one.scores, 1, plan.key),
            (one.context, 0, plan.probabilities),
            (one.context, 1, plan.value),
        ):
            value = node.inputs[index]
            assert value is not None
            emit_activation(model.graph, value, qparams, [node])
