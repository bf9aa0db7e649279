"""Exact transforms: a channel scale and shift on a quantized input, undone by the layers around it.

An input ``x`` becomes ``(x - shift) / scale`` per channel; the linear layers that read it get ``W * scale`` and
``b + shift @ W``, so the float result stays the same. What makes the input absorbs the rest at no cost at run time: a
LayerNormalization in its weight and bias (SmoothQuant, arXiv:2211.10438; the shift is from Outlier Suppression+,
arXiv:2304.09145), attention in the value projection, because the probabilities of a row sum to one. After an activation
function only an explicit subtraction is possible.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.errors import QuantizeError
from vitexport.host.graph.constants import add_initializer, array_of, is_constant
from vitexport.host.graph.hadamard import hadamard
from vitexport.host.graph.layers import LinearLayer, find_attention, origins_of
from vitexport.host.graph.scopes import inherit_module
from vitexport.host.quantize.numerics.rotation import Rotation
from vitexport.host.quantize.planning.layers import QuantizedLayer
from vitexport.host.quantize.planning.search import InputPlan
from vitexport.tensors import ROTATION_SUFFIX

__all__ = [
    "Absorber",
    "apply_explicitly",
    "ensure_biases",
    "find_absorber",
    "fold_into_consumers",
    "projection_columns",
    "replace_constant",
    "rotate",
    "scale_projection",
    "zero_key_biases",
]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Absorber:
    """What can take up a channel scale and shift of a tensor.

    Attributes:
        kind: ``norm`` and ``value`` take any scale and shift; ``gelu`` only a shift, by an added Sub; ``none`` nothing.
        node: The LayerNormalization, or the MatMul of the value projection.
        columns: Columns of the value projection that make the tensor's channels, in order.
    """

    kind: str
    node: ir.Node | None = None
    columns: slice = field(default_factory=lambda: slice(0))


def find_absorber(layers: Sequence[QuantizedLayer]) -> Absorber:
    """Return what can absorb a transform of the tensor that ``layers`` share.

    Args:
        layers: All layers that read one tensor.
    """
    value = layers[0].input
    producer = value.producer()
    consumers = {layer.linear.matmul for layer in layers}
    if producer is None or value.is_graph_output() or set(value.consumers()) != consumers:
        return Absorber("none")
    if producer.op_type == "Gelu":
        return Absorber("gelu", producer)
    if producer.op_type == "LayerNormalization":
        constants = len(producer.inputs) > 2 and all(is_constant(v) for v in producer.inputs[1:3])
        last = "axis" not in producer.attributes or producer.attributes["axis"].as_int() == -1
        return Absorber("norm", producer) if constants and last else Absorber("none")
    return _value_projection(value, layers[0].shape[0]) or Absorber("none")


def _value_projection(value: ir.Value, channels: int) -> Absorber | None:
    """Follow attention's output back to the columns of the projection that made V, if every step is understood."""
    context = _back(value, ("Reshape", "Transpose"))
    if context is None or context.op_type != "MatMul":
        return None
    probabilities = context.inputs[0].producer() if context.inputs[0] is not None else None
    if probabilities is None or probabilities.op_type != "Softmax":
        return None
    projection = projection_columns(context.inputs[1])
    if projection is None or _back(context.inputs[1], ("Transpose", "Reshape")) is None:
        return None
    layer, columns = projection
    width = len(range(*columns.indices(_float64(layer.bias).size)))
    return Absorber("value", layer.matmul, columns) if width == channels else None


def _back(value: ir.Value | None, through: tuple[str, str]) -> ir.Node | None:
    """Step back over exactly a Reshape and a Transpose that swaps heads and tokens, each read only once."""
    for op_type in through:
        node = None if value is None else value.producer()
        if node is None or node.op_type != op_type or len(node.outputs[0].uses()) != 1:
            return None
        if op_type == "Transpose" and list(node.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
            return None
        value = node.inputs[0]
    if value is None or len(value.uses()) != 1:
        return None
    return value.producer()


def apply_to_source(graph: ir.Graph, absorber: Absorber, scale: Floats, shift: Floats) -> None:
    """Make the tensor that ``absorber`` produces ``(x - shift) / scale``.

    Args:
        graph: The graph.
        absorber: Of kind ``norm`` or ``value``.
        scale: Positive, ``[K]``.
        shift: ``[K]``.
    """
    assert absorber.node is not None
    if absorber.kind == "norm":
        gamma, beta = (_float64(absorber.node.inputs[index]) for index in (1, 2))
        replace_constant(graph, absorber.node, 1, (gamma / scale).astype(np.float32))
        replace_constant(graph, absorber.node, 2, ((beta - shift) / scale).astype(np.float32))
        return
    layer = LinearLayer.of(absorber.node)
    assert layer is not None
    scale_projection(
        graph, layer, absorber.columns, (1 / scale).astype(np.float32), (-shift / scale).astype(np.float32)
    )


def fold_into_consumers(graph: ir.Graph, layers: Sequence[QuantizedLayer], choice: InputPlan) -> None:
    """Give the layers that read a transformed tensor the weights and biases that make up for it."""
    for layer in layers:
        weight = layer.weight()
        set_weight(graph, layer, choice.transform_weight(weight))
        if choice.shift.any():
            lost = choice.shift.astype(np.float64) @ weight.astype(np.float64)
            set_bias(graph, layer, (layer.bias() + lost).astype(np.float32))


def apply_explicitly(
    graph: ir.Graph, value: ir.Value, scale: Floats, shift: Floats, consumers: Sequence[ir.Node]
) -> ir.Value:
    """Insert ``value * (1 / scale) - shift / scale`` for ``consumers`` in as few nodes as possible; return it."""
    last = value.producer()
    result = value
    steps = [("Mul", 1 / scale, "scaled"), ("Sub", shift / scale, "shifted")]
    for op_type, operand, suffix in steps:
        if np.all(operand == (1 if op_type == "Mul" else 0)):
            continue
        assert last is not None
        constant = operand[:1] if np.all(operand == operand[0]) else operand
        stored = add_initializer(graph, f"{value.name}.{suffix}_by", constant.astype(np.float32))
        node = inherit_module(ir.node(op_type, [result, stored], name=f"{value.name}.{suffix}"), last)
        graph.insert_after(last, node)
        last, result = node, node.outputs[0]
        result.name, result.shape, result.type = f"{value.name}.{suffix}", value.shape, value.type
    _redirect(value, result, consumers)
    return result


def rotate(graph: ir.Graph, value: ir.Value, rotation: Rotation, consumers: Sequence[ir.Node]) -> ir.Value:
    """Insert ``Reshape -> MatMul -> Reshape`` that rotates ``value`` for ``consumers``; return what they read now."""
    last = value.producer()
    assert last is not None and value.shape is not None
    name, size = str(value.name), rotation.size
    # A dimension of its own: under another tensor's name ONNX Runtime 1.31 warns about its size on every run.
    rows = ir.Shape([ir.SymbolicDim(f"{name}.rows"), size])
    back = [axis if isinstance(axis, int) else -1 for axis in value.shape]
    if back.count(-1) > 1:
        raise QuantizeError(
            f"Expected at most one dynamic axis in '{name}', found the shape {value.shape}.",
            "Export with a fixed image size, or quantize with `--rotate none`.",
        )
    steps = (
        ("Reshape", add_initializer(graph, f"{name}.blocks", np.array([-1, size])), rows, ".blocked"),
        ("MatMul", add_initializer(graph, f"{name}.matrix", hadamard(size)), rows, ROTATION_SUFFIX),
        ("Reshape", add_initializer(graph, f"{name}.shape", np.array(back)), value.shape, ".rotated"),
    )
    result = value
    for op_type, operand, shape, suffix in steps:
        node = inherit_module(ir.node(op_type, [result, operand], name=f"{name}{suffix}"), last)
        graph.insert_after(last, node)
        last, result = node, node.outputs[0]
        result.name, result.shape, result.type = node.name, shape, value.type
    _redirect(value, result, consumers)
    return result


def _redirect(value: ir.Value, result: ir.Value, consumers: Sequence[ir.Node]) -> None:
    for consumer in consumers:
        for index, used in enumerate(consumer.inputs):
            if used is value:
                consumer.replace_input_with(index, result)


def ensure_biases(model: ir.Model, layers: Sequence[QuantizedLayer]) -> bool:
    """Add a bias of zeros to every layer that has none; returns whether anything changed (layers are then stale)."""
    changed = False
    for layer in layers:
        if layer.linear.bias is not None:
            continue
        node, columns = layer.linear.matmul, layer.shape[1]
        zeros = add_initializer(model.graph, f"{layer.name}.bias", np.zeros(columns, dtype=np.float32))
        changed = True
        if node.op_type == "Gemm":
            node.resize_inputs(3)
            node.replace_input_with(2, zeros)
            continue
        out = node.outputs[0]
        add = inherit_module(ir.node("Add", [out, zeros], name=f"{node.name}.bias"), node)
        result = add.outputs[0]
        result.name, result.shape, result.type = f"{out.name}.biased", out.shape, out.type
        model.graph.insert_after(node, add)
        out.replace_all_uses_with(result, replace_graph_outputs=True)
        add.replace_input_with(0, out)
    return changed


def zero_key_biases(model: ir.Model, *, leave: Collection[str] = ()) -> int:
    """Set the key biases to zero where attention cannot see them; returns how many projections changed.

    ``softmax(q @ (k + b)^T)`` adds ``q . b`` to every score of a row, and softmax ignores what is added to a whole row.

    Args:
        model: Changed in place.
        leave: Names of attentions whose key biases stay.
    """
    changed = 0
    for attention in find_attention(model):
        if attention.name in leave:
            continue
        key = attention.scores.inputs[1]
        projection = projection_columns(key)
        if projection is None:
            continue
        layer, columns = projection
        row = _float64(layer.bias)[columns]
        if row.any():
            scale_projection(model.graph, layer, columns, np.ones_like(row, dtype=np.float32), -row.astype(np.float32))
            changed += 1
    return changed


def projection_columns(value: ir.Value | None) -> tuple[LinearLayer, slice] | None:
    """Return the linear layer and its columns that make ``value`` through views and a Split only, and all they feed."""
    columns = slice(None)
    while value is not None and (node := value.producer()) is not None and len(value.uses()) == 1:
        if node.op_type in ("Reshape", "Transpose"):
            value = node.inputs[0]
            continue
        if node.op_type == "Split":
            sizes = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
            index = value.index()
            if sizes is None or index is None or node.attributes["axis"].as_int() not in (-1, 2):
                return None
            start = int(sizes.reshape(-1)[:index].sum())
            columns = slice(start, start + int(sizes.reshape(-1)[index]))
            value = node.inputs[0]
        origins = () if value is None else origins_of(value)
        layer = LinearLayer.of(origins[0]) if len(origins) == 1 else None
        if layer is None or layer.add is None or layer.bias is None or layer.output is not value:
            return None
        return (layer, columns) if layer.matmul.op_type == "MatMul" else None
    return None


def scale_projection(graph: ir.Graph, layer: LinearLayer, columns: slice, factor: Floats, offset: Floats) -> None:
    """Turn output columns ``y`` of a linear layer into ``y * factor + offset``."""
    assert layer.add is not None
    bias = next(v for v in layer.add.inputs if is_constant(v))
    weight, row = _float64(layer.matmul.inputs[1]), _float64(bias)
    weight[:, columns] *= factor
    row[columns] = row[columns] * factor + offset
    replace_constant(graph, layer.matmul, 1, weight.astype(np.float32))
    replace_constant(graph, layer.add, _index_of(layer.add, bias), row.astype(np.float32))


def set_weight(graph: ir.Graph, layer: QuantizedLayer, weight: Floats) -> None:
    """Replace a layer's weight by ``[K, N]`` values."""
    stored = np.ascontiguousarray(weight.T) if layer.transposed else weight
    replace_constant(graph, layer.linear.matmul, 1, stored)


def set_bias(graph: ir.Graph, layer: QuantizedLayer, bias: Floats) -> None:
    """Replace a layer's bias by ``[N]`` values; the layer must have one."""
    node = layer.linear.add or layer.linear.matmul
    value = layer.bias_value
    assert value is not None
    replace_constant(graph, node, _index_of(node, value), bias)


def replace_constant(graph: ir.Graph, node: ir.Node, index: int, array: Floats) -> None:
    """Give one input of ``node`` another constant; other users of the old one keep it."""
    old = node.inputs[index]
    assert old is not None
    name = str(old.name)
    alone = len(old.uses()) == 1 and not old.is_graph_output()
    if alone and name in graph.initializers:
        old.const_value = ir.tensor(array, name=name)
    else:
        node.replace_input_with(index, add_initializer(graph, name, array))


def _index_of(node: ir.Node, value: ir.Value | None) -> int:
    return next(index for index, used in enumerate(node.inputs) if used is value)


def _float64(value: ir.Value | None) -> NDArray[np.float64]:
    array = array_of(value)
    assert array is not None
    return np.array(array, dtype=np.float64)
