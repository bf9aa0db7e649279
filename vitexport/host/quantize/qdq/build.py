"""From a float graph and its plans to a quantized graph; the float graph itself is kept.

Transforms are applied here and not while they are planned, so that a layer that stays float after all gets its own
input back: nothing is scaled, shifted or rotated that no quantized layer reads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.attention_rows import divide_rows
from vitexport.host.graph.layers import LinearLayer, find_attention, find_linears
from vitexport.host.quantize.planning.attention import AttentionPlan
from vitexport.host.quantize.planning.layers import QuantizedLayer, is_transposed
from vitexport.host.quantize.planning.plan import GraphPlan
from vitexport.host.quantize.planning.search import InputPlan
from vitexport.host.quantize.planning.transforms import (
    apply_explicitly,
    apply_to_source,
    find_absorber,
    fold_into_consumers,
    projection_columns,
    rotate,
    scale_projection,
    set_bias,
    zero_key_biases,
)
from vitexport.host.quantize.qdq.emit import emit_activation, emit_attention, emit_weight

__all__ = ["build_quantized", "build_transformed"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Transformed:
    """A float graph whose transforms were applied.

    Attributes:
        model: The graph.
        inputs: The value that the quantized layers of a plan read, by position of the plan; those that stay float are
            not there.
        layers: Its layers by name.
        columns: What each output column of a layer was multiplied by after its weight was planned, ``[N]``, by name.
    """

    model: ir.Model
    inputs: dict[int, ir.Value] = field(default_factory=dict)
    layers: dict[str, QuantizedLayer] = field(default_factory=dict)
    columns: dict[str, Floats] = field(default_factory=dict)

    def scale_columns(self, layer: LinearLayer, columns: slice, factor: Floats, offset: Floats) -> None:
        scale_projection(self.model.graph, layer, columns, factor, offset)
        known = self.columns.setdefault(layer.name, np.ones(self.layers[layer.name].shape[1], dtype=np.float32))
        known[columns] *= factor


def build_transformed(model: ir.Model, plan: GraphPlan, keep_float: Collection[str] = ()) -> ir.Model:
    """Return a copy of ``model`` with the transforms of everything that is quantized, and still float.

    Args:
        model: The float graph.
        plan: Of the graph.
        keep_float: Groups (of layers and attentions) left in float.
    """
    return _transform(model, plan, keep_float).model


def build_quantized(model: ir.Model, plan: GraphPlan, keep_float: Collection[str] = ()) -> ir.Model:
    """Return a copy of ``model`` with Q/DQ written into it; arguments as for :func:`build_transformed`."""
    done = _transform(model, plan, keep_float)
    for index, value in done.inputs.items():
        tensor = plan.tensors[index]
        layers = [done.layers[layer.name] for layer in tensor.layers if layer.group not in keep_float]
        emit_activation(done.model.graph, value, tensor.choice.qparams, [layer.linear.matmul for layer in layers])
        for layer in layers:
            factor = done.columns.get(layer.name, np.float32(1))
            planned = plan.layers[layer.name]
            set_bias(done.model.graph, layer, layer.bias() + planned.correction * factor)
            emit_weight(done.model.graph, layer, planned.weight.scaled(factor))
    emit_attention(done.model, _quantized(plan, keep_float))
    return done.model


def _quantized(plan: GraphPlan, keep_float: Collection[str]) -> list[AttentionPlan]:
    return [one for one in plan.attention if one.group not in keep_float]


def _transform(model: ir.Model, plan: GraphPlan, keep_float: Collection[str]) -> _Transformed:
    copy = model.clone()
    quantized = _quantized(plan, keep_float)
    zero_key_biases(copy, leave=[one.name for one in quantized])
    done = _Transformed(copy)
    done.layers.update({one.name: QuantizedLayer(one, is_transposed(one.matmul)) for one in find_linears(copy)})
    blocks = {one.block for one in quantized}
    for index, tensor in enumerate(plan.tensors):
        group = [done.layers[layer.name] for layer in tensor.layers]
        stays_float = all(layer.group in keep_float for layer in group)
        # A quantized attention reads the value, which the layer after it transforms.
        if stays_float and not (tensor.kind == "value" and group[0].linear.block in blocks):
            continue
        value = _apply(done, tensor.choice, group)
        if not stays_float:
            done.inputs[index] = value
    _finish_attention(done, quantized)
    return done


def _apply(done: _Transformed, choice: InputPlan, group: Sequence[QuantizedLayer]) -> ir.Value:
    """Transform the input of some layers, and return it."""
    graph, value = done.model.graph, group[0].input
    absorber = find_absorber(group)
    fold_into_consumers(graph, group, choice)
    if absorber.kind == "value":
        assert absorber.node is not None
        layer = next(one.linear for one in done.layers.values() if one.linear.matmul is absorber.node)
        factor = (1 / choice.channel_scale).astype(np.float32)
        done.scale_columns(layer, absorber.columns, factor, (-choice.shift / choice.channel_scale).astype(np.float32))
        return value
    if absorber.kind == "norm":
        apply_to_source(graph, absorber, choice.channel_scale, choice.shift)
        return value
    consumers = [layer.linear.matmul for layer in group]
    value = apply_explicitly(graph, value, choice.channel_scale, choice.shift, consumers)
    return value if choice.rotation is None else rotate(graph, value, choice.rotation, consumers)


def _finish_attention(done: _Transformed, attention: Sequence[AttentionPlan]) -> None:
    """Scale query, key and value of the attentions that are quantized, and divide rows of probabilities."""
    by_name = {plan.name: plan for plan in attention}
    for one in find_attention(done.model):
        plan = by_name.get(one.name)
        if plan is None:
            continue
        nothing = np.zeros_like(plan.gain)
        for value, factor, offset in (
            (one.scores.inputs[0], plan.query_scale, nothing),
            (one.scores.inputs[1], plan.key_scale, plan.key_offset),
            (one.context.inputs[1], plan.gain, nothing),
        ):
            projection = projection_columns(value)
            if projection is not None:
                found, columns = projection
                layer = next(one.linear for one in done.layers.values() if one.linear.matmul is found.matmul)
                done.scale_columns(layer, columns, factor, offset)
        if plan.rows:
            divide_rows(done.model, one)
