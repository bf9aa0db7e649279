"""From a transformed float graph and its plans to a quantized graph; the float graph itself is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from vitexport.host.graph.layers import find_linears
from vitexport.host.quantize.planning.attention import AttentionPlan, apply_gains
from vitexport.host.quantize.planning.layers import QuantizedLayer, is_transposed
from vitexport.host.quantize.planning.plan import LayerPlan, TensorPlan
from vitexport.host.quantize.planning.transforms import set_bias
from vitexport.host.quantize.qdq.emit import emit_activation, emit_attention, emit_weight

__all__ = ["build_quantized"]


def build_quantized(
    model: ir.Model,
    plans: Sequence[TensorPlan],
    layer_plans: Mapping[str, LayerPlan],
    attention: Sequence[AttentionPlan] = (),
    keep_float: Collection[str] = (),
) -> ir.Model:
    """Return a copy of ``model`` with Q/DQ written into it.

    Args:
        model: The transformed float graph.
        plans: Tensor plans.
        layer_plans: Layer plans by name.
        attention: Plans of attentions to quantize.
        keep_float: Groups (of layers and attentions) left in float.
    """
    copy = model.clone()
    graph = copy.graph
    quantized = [plan for plan in attention if plan.group not in keep_float]
    gains = apply_gains(copy, quantized)
    values = {value.name: value for node in graph for value in node.outputs} | {v.name: v for v in graph.inputs}
    layers = {layer.name: QuantizedLayer(layer, is_transposed(layer.matmul)) for layer in find_linears(copy)}
    for plan in plans:
        names = [layer.name for layer in plan.layers if layer.group not in keep_float]
        if not names:
            continue
        emit_activation(
            graph, values[plan.value.name], plan.choice.qparams, [layers[name].linear.matmul for name in names]
        )
        for name in names:
            gain = gains.get(name, np.float32(1))
            set_bias(graph, layers[name], layers[name].bias() + layer_plans[name].correction * gain)
            emit_weight(graph, layers[name], layer_plans[name].weight.scaled(gain))
    emit_attention(copy, quantized)
    return copy
