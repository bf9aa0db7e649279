"""Writing Q/DQ nodes into a graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.quantize.sites import Site

__all__ = ["ActivationRange", "QuantizedWeight", "emit_activation", "emit_weight", "initializer"]


@dataclass(frozen=True)
class ActivationRange:
    """How an activation tensor is quantized: ``q = clip(round(x / scale) + zero_point)``.

    Attributes:
        scale: Step, per tensor.
        zero_point: Integer that stands for 0.0; always 0 for symmetric targets.
        dtype: ``int8``, ``uint8`` or ``float8e4m3fn``.
    """

    scale: float
    zero_point: int = 0
    dtype: str = "int8"


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight quantized per output channel: ``w = q * scale``.

    Attributes:
        values: int8 ``[K, N]``.
        scale: float32 ``[N]``.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]

    def dequantized(self) -> NDArray[np.float32]:
        """Return float32 ``[K, N]``."""
        return self.values.astype(np.float32) * self.scale


def initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Register a constant under ``name`` and return its value; an equal name is numbered."""
    unique, number = name, 1
    while unique in graph.initializers:
        unique, number = f"{name}.{number}", number + 1
    tensor = ir.tensor(array, name=unique)
    value = ir.Value(name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def emit_activation(graph: ir.Graph, value: ir.Value, how: ActivationRange, consumers: list[ir.Node]) -> ir.Value:
    """Put one Q and one DQ on ``value`` for ``consumers`` and return the dequantized value."""
    name = value.name or "activation"
    scale = initializer(graph, f"{name}.scale", np.asarray(how.scale, dtype=np.float32))
    zero = initializer(graph, f"{name}.zero_point", np.asarray(how.zero_point, dtype=how.dtype))
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}.quantize")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{name}.dequantize")
    quantize.outputs[0].name = f"{name}.quantized"
    dequantize.outputs[0].name = f"{name}.dequantized"
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    for node in consumers:
        for index, used in enumerate(node.inputs):
            if used is value:
                node.replace_input_with(index, dequantize.outputs[0])
    return dequantize.outputs[0]


def emit_weight(graph: ir.Graph, site: Site, weight: QuantizedWeight) -> None:
    """Store a site's weight as an int8 initializer behind a DequantizeLinear along the output-channel axis."""
    name = f"{site.name}.weight"
    axis = 0 if site.transposed else 1
    values = np.ascontiguousarray(weight.values.T) if site.transposed else weight.values
    stored = initializer(graph, f"{name}.quantized", values)
    scale = initializer(graph, f"{name}.scale", weight.scale.astype(np.float32))
    zero = initializer(graph, f"{name}.zero_point", np.zeros(weight.scale.shape, dtype=np.int8))
    dequantize = ir.node(
        "DequantizeLinear", [stored, scale, zero], attributes={"axis": axis}, name=f"{name}.dequantize"
    )
    dequantize.outputs[0].name = f"{name}.dequantized"
    old = site.weight_value
    graph.insert_before(site.node, dequantize)
    site.node.replace_input_with(1, dequantize.outputs[0])
    if not old.uses() and old.name is not None and old.name in graph.initializers:
        del graph.initializers[old.name]
