"""What must be true of every quantized graph; checked after each quantization and by tests with broken graphs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitexport.errors import QuantizeError
from vitexport.host.graph.attention_rows import rows_of
from vitexport.host.graph.constants import array_of
from vitexport.host.graph.layers import LinearLayer, find_attention, find_linears

__all__ = ["Violation", "check_postconditions", "violations"]

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_STORED = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT8E4M3FN})


@dataclass(frozen=True)
class Violation:
    """One postcondition that does not hold.

    Attributes:
        rule: ``symmetric``, ``axis``, ``dangling``, ``layers``, ``weight``, ``scale``, ``shared`` or ``attention``.
        where: Node, tensor or layer.
        message: What was expected and found.
    """

    rule: str
    where: str
    message: str


def check_postconditions(
    model: ir.Model, *, layers: Collection[str], symmetric: bool, attention: Mapping[str, bool] | None = None
) -> None:
    """Check every postcondition.

    Args:
        model: The quantized graph.
        layers: Names of the layers that must be quantized; all others must not be.
        symmetric: Activations must have zero points of 0, as TensorRT demands.
        attention: Names of the attentions whose GEMMs must be quantized, and whether their rows of probabilities must
            be divided by their maxima.

    Raises:
        QuantizeError: Lists what does not hold.
    """
    broken = list(violations(model, layers=layers, symmetric=symmetric, attention=attention))
    if broken:
        lines = "\n".join(f"  {violation.rule}: {violation.where}: {violation.message}" for violation in broken[:8])
        raise QuantizeError(
            f"The quantized graph breaks {len(broken)} of its postconditions:\n{lines}",
            "This is a defect of the quantizer or of the graph it was given; report it with the model.",
        )


def violations(
    model: ir.Model, *, layers: Collection[str], symmetric: bool, attention: Mapping[str, bool] | None = None
) -> Iterator[Violation]:
    """Yield everything that :func:`check_postconditions` would report."""
    linears = find_linears(model)
    attention = attention or {}
    yield from _pairs(model, symmetric)
    yield from _layers(linears, frozenset(layers))
    yield from _attentions(model, attention)
    allowed = {layer.matmul for layer in linears if layer.name in layers}
    for one in find_attention(model):
        if one.name in attention:
            allowed |= {one.scores, one.context}
    for node in model.graph:
        if node.op_type == _DQ:
            consumers = set(node.outputs[0].consumers())
            if not consumers or node.outputs[0].is_graph_output() or consumers - allowed:
                found = ", ".join(str(consumer.name) for consumer in consumers - allowed) or "nothing"
                yield Violation("dangling", str(node.name), f"expected only quantized layers to read it, found {found}")


def _pairs(model: ir.Model, symmetric: bool) -> Iterator[Violation]:
    sources: dict[ir.Value, ir.Node] = {}
    for node in model.graph:
        if node.op_type not in (_Q, _DQ):
            continue
        name = str(node.name)
        yield from _parameters(node, symmetric)
        if node.op_type == _Q:
            value = node.inputs[0]
            assert value is not None
            if value in sources:
                yield Violation("shared", name, f"expected one Q on '{value.name}', found two")
            sources[value] = node
            consumers = node.outputs[0].consumers()
            if not consumers or any(consumer.op_type != _DQ for consumer in consumers):
                yield Violation("dangling", name, "expected only DequantizeLinear to read it")
            continue
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        if producer is None:
            continue
        if producer.op_type != _Q:
            yield Violation(
                "dangling", name, f"expected QuantizeLinear or a weight before it, found {producer.op_type}"
            )
        elif not all(_equal(a, b) for a, b in zip(producer.inputs[1:3], node.inputs[1:3], strict=False)):
            yield Violation("scale", name, "expected the scale and zero point of its QuantizeLinear, found others")


def _parameters(node: ir.Node, symmetric: bool) -> Iterator[Violation]:
    name = str(node.name)
    scale = array_of(node.inputs[1])
    zero = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or not np.all(np.isfinite(scale.astype(np.float64))) or not np.all(scale.astype(np.float64) > 0):
        yield Violation("scale", name, "expected constant, finite, positive scales")
    weight = node.op_type == _DQ and array_of(node.inputs[0]) is not None
    if zero is not None and (symmetric or weight) and np.any(zero.astype(np.float32) != 0):
        yield Violation("symmetric", name, f"expected zero points of 0, found {np.unique(zero.astype(np.float32))[:3]}")
    if symmetric and zero is not None and zero.dtype == np.uint8:
        yield Violation("symmetric", name, "expected int8, found uint8")
    if not weight and scale is not None and scale.size != 1:
        yield Violation("axis", name, f"expected one scale per activation tensor, found {scale.size}")


def _layers(linears: tuple[LinearLayer, ...], asked: frozenset[str]) -> Iterator[Violation]:
    names = {layer.name for layer in linears}
    for name in sorted(asked - names):
        yield Violation("layers", name, "expected this layer in the graph, found none of that name")
    for layer in linears:
        sides = [_dequantizer(value) for value in layer.matmul.inputs[:2]]
        quantized = [side is not None for side in sides]
        if layer.name in asked and not all(quantized):
            missing = "activation" if not quantized[0] else "weight"
            yield Violation("layers", layer.name, f"expected it to be quantized, found a float {missing}")
        elif layer.name not in asked and any(quantized):
            yield Violation("layers", layer.name, "expected it to stay float, found a DequantizeLinear on its inputs")
        elif layer.name in asked and sides[1] is not None:
            yield from _weight(layer, sides[1])


def _weight(layer: LinearLayer, dequantize: ir.Node) -> Iterator[Violation]:
    stored = dequantize.inputs[0]
    array, scale = array_of(stored), array_of(dequantize.inputs[1])
    if stored is None or array is None or stored.const_value is None or stored.const_value.dtype not in _STORED:
        yield Violation(
            "weight", layer.name, "expected the weight stored as an 8-bit initializer behind a DequantizeLinear"
        )
        return
    transposed = "transB" in layer.matmul.attributes and layer.matmul.attributes["transB"].as_int() == 1
    expected = 0 if transposed else 1
    axis = dequantize.attributes["axis"].as_int() if "axis" in dequantize.attributes else 1
    if axis % array.ndim != expected:
        yield Violation(
            "axis", layer.name, f"expected scales along axis {expected} (output channels), found axis {axis}"
        )
    elif scale is None or scale.shape != (array.shape[expected],):
        found = None if scale is None else scale.shape
        yield Violation("axis", layer.name, f"expected {array.shape[expected]} scales, found shape {found}")


def _attentions(model: ir.Model, asked: Mapping[str, bool]) -> Iterator[Violation]:
    attentions = find_attention(model)
    for name in sorted(asked.keys() - {one.name for one in attentions}):
        yield Violation("attention", name, "expected this attention in the graph, found none of that name")
    for one in attentions:
        inputs = (*one.scores.inputs[:2], *one.context.inputs[:2])
        quantized = [_dequantizer(value) is not None for value in inputs]
        if one.name in asked and not all(quantized):
            yield Violation(
                "attention", one.name, "expected query, key, probabilities and value quantized, all of them"
            )
        elif one.name not in asked and any(quantized):
            yield Violation("attention", one.name, "expected it to stay float, found a DequantizeLinear on its inputs")
        expected, rows = "divided" if asked.get(one.name) else "plain", rows_of(one)
        if rows != expected:
            yield Violation("attention", one.name, f"expected its rows of probabilities {expected}, found them {rows}")


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == _DQ else None


def _equal(first: ir.Value | None, second: ir.Value | None) -> bool:
    a, b = array_of(first), array_of(second)
    return first is second or (a is not None and b is not None and a.shape == b.shape and bool(np.all(a == b)))
