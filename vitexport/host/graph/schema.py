"""Which element types ONNX permits at an operator's inputs and outputs, as the schemas of the onnx package say."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import onnx
import onnx_ir as ir

__all__ = ["first_opset", "opset_of", "permits_input", "permits_output"]


def opset_of(model: ir.Model) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return model.opset_imports[""]


def permits_input(op_type: str, opset: int, index: int, dtype: ir.DataType, domain: str = "") -> bool:
    """Return whether an operator may take a tensor of that type.

    Args:
        op_type: Name of the operator.
        opset: Version of its domain.
        index: Position of the input.
        dtype: Element type.
        domain: Empty for ONNX's own. Of an operator that onnx has no schema for, everything is permitted.
    """
    return _permits(op_type, opset, domain, "inputs", index, dtype)


def permits_output(op_type: str, opset: int, index: int, dtype: ir.DataType, domain: str = "") -> bool:
    """Return whether an operator may give a tensor of that type; arguments as for :func:`permits_input`."""
    return _permits(op_type, opset, domain, "outputs", index, dtype)


def first_opset(start: int, permits: Callable[[int], bool]) -> int | None:
    """Return the first opset from ``start`` on for which ``permits`` holds; None where the onnx package knows none."""
    return next((opset for opset in range(start, onnx.defs.onnx_opset_version() + 1) if permits(opset)), None)


def _permits(op_type: str, opset: int, domain: str, side: str, index: int, dtype: ir.DataType) -> bool:
    sides = _types(op_type, opset, domain)
    if sides is None:
        return True
    declared = sides[side]
    # The last parameter may stand for any number of tensors; a tensor beyond them is the checker's to report.
    allowed = declared[min(index, len(declared) - 1)] if declared else frozenset()
    return f"tensor({dtype.name.lower()})" in allowed


@cache
def _types(op_type: str, opset: int, domain: str) -> dict[str, tuple[frozenset[str], ...]] | None:
    """Return the type strings that every formal input and output permits; None for an unknown operator."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    variables = {entry.type_param_str: frozenset(entry.allowed_type_strs) for entry in schema.type_constraints}
    return {
        side: tuple(variables.get(entry.type_str, frozenset({entry.type_str})) for entry in formal)
        for side, formal in (("inputs", schema.inputs), ("outputs", schema.outputs))
    }
