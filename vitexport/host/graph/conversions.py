"""Looking through what changes the type of a tensor and not what it stands for: Q/DQ and casts."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["reader_of", "source_of"]

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})


def source_of(value: ir.Value | None) -> ir.Value | None:
    """Return the float tensor behind Q/DQ and Cast nodes."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _CONVERSIONS:
        value = node.inputs[0]
    return value


def reader_of(value: ir.Value) -> ir.Node | None:
    """Return the only node that reads a tensor, behind Q/DQ and Cast nodes; None where several do, or none."""
    while True:
        readers = set(value.consumers())
        if len(readers) != 1:
            return None
        node = readers.pop()
        if node.op_type not in _CONVERSIONS:
            return node
        value = node.outputs[0]
