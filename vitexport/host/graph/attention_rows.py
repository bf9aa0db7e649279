"""Attention whose rows of probabilities are divided by their own maxima before the product with the value.

``softmax(s) @ v = m * ((softmax(s) / m) @ v)`` for the maximum ``m`` of each row. After the division every row reaches
from 0 to 1 and can be rounded to the same few steps, however thinly its probabilities are spread.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from vitexport.host.graph.constants import add_initializer
from vitexport.host.graph.conversions import reader_of, source_of
from vitexport.host.graph.layers import Attention
from vitexport.host.graph.schema import opset_of
from vitexport.host.graph.scopes import inherit_module

__all__ = ["divide_rows", "rows_of"]

_AXES_AS_INPUT = 18
"""First opset in which ReduceMax takes its axes as an input and no longer as an attribute."""


def rows_of(attention: Attention) -> Literal["plain", "divided", "broken"]:
    """Return what is done to the rows of probabilities; ``broken`` where they are divided and not multiplied back."""
    probabilities = source_of(attention.context.inputs[0])
    division = None if probabilities is None else probabilities.producer()
    maximum = _row_maximum(division)
    product = reader_of(attention.context.outputs[0])
    factors = [] if product is None or product.op_type != "Mul" else [source_of(value) for value in product.inputs]
    if maximum is None:
        return "broken" if any(_is_maximum(value) for value in factors) else "plain"
    return "divided" if maximum in factors else "broken"


def _row_maximum(division: ir.Node | None) -> ir.Value | None:
    """Return the row maxima that a node divides by; None where it does no such thing."""
    if division is None or division.op_type != "Div":
        return None
    divisor = source_of(division.inputs[1])
    if divisor is None or not _is_maximum(divisor):
        return None
    producer = divisor.producer()
    assert producer is not None
    return divisor if source_of(producer.inputs[0]) is source_of(division.inputs[0]) else None


def _is_maximum(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "ReduceMax"


def divide_rows(model: ir.Model, attention: Attention) -> None:
    """Divide an attention's rows of probabilities by their maxima, and multiply its output by them.

    Exact but for float arithmetic. A row's maximum is at least one over its length, so nothing is divided by zero. The
    output keeps its name.

    Args:
        model: Changed in place.
        attention: One of its attentions.
    """
    graph, context = model.graph, attention.context
    probabilities, output = context.inputs[0], context.outputs[0]
    assert probabilities is not None
    producer = probabilities.producer()
    assert producer is not None
    name, result = str(probabilities.name), str(output.name)
    peak = _reduce_max(model, probabilities)
    divide = ir.node("Div", [probabilities, peak.outputs[0]], name=f"{name}.divide")
    _describe(divide, f"{name}.divided", probabilities, probabilities.shape)
    graph.insert_after(producer, [inherit_module(node, producer) for node in (peak, divide)])
    context.replace_input_with(0, divide.outputs[0])
    multiply = ir.node("Mul", [output, peak.outputs[0]], name=f"{result}.multiply")
    output.replace_all_uses_with(multiply.outputs[0], replace_graph_outputs=True)
    multiply.replace_input_with(0, output)
    output.name = f"{result}.divided"
    _describe(multiply, result, output, output.shape)
    graph.insert_after(context, inherit_module(multiply, context))


def _reduce_max(model: ir.Model, probabilities: ir.Value) -> ir.Node:
    name = f"{probabilities.name}.maximum"
    if opset_of(model) < _AXES_AS_INPUT:
        node = ir.node("ReduceMax", [probabilities], attributes={"axes": [-1], "keepdims": 1}, name=name)
    else:
        axes = add_initializer(model.graph, f"{name}.axes", np.array([-1], dtype=np.int64))
        node = ir.node("ReduceMax", [probabilities, axes], attributes={"keepdims": 1}, name=name)
    shape = None if probabilities.shape is None else ir.Shape([*probabilities.shape[:-1], 1])
    _describe(node, f"{name}.value", probabilities, shape)
    return node


def _describe(node: ir.Node, name: str, like: ir.Value, shape: ir.Shape | None) -> None:
    value = node.outputs[0]
    value.name, value.type, value.shape = name, like.type, shape
