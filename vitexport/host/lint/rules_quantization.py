"""Rules about Q/DQ: what TensorRT's parser rejects, and what it accepts but does not turn into quantized arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto, helper

from vitexport.host.lint.findings import Finding, LintTarget, Severity
from vitexport.host.lint.graph import LintGraph

__all__ = ["cast_after_dequantize", "int32_bias", "orphans", "scales", "uint8", "weight_axis", "zero_points"]

_GEMMS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
# Operators TensorRT can run on quantized data when a DQ feeds them, beside matrix products.
_QUANTIZABLE = (
    *_GEMMS,
    "Add",
    "AveragePool",
    "MaxPool",
    "GlobalAveragePool",
    "Attention",
    "Einsum",
    "Concat",
    "Gather",
)


def int32_bias(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """A bias stored as INT32 with a DequantizeLinear: ONNX Runtime's default, and no TensorRT parser takes it."""
    if target.engine != "tensorrt":
        return
    for node in graph.nodes("DequantizeLinear"):
        if graph.dtype(node.input[0]) == TensorProto.INT32:
            yield _finding(
                graph,
                node,
                "int32-bias",
                f"it dequantizes INT32, and {target.title} dequantizes only FP8, FP4, INT4 and INT8",
                "Keep biases in float: quantize with --target tensorrt, or with QuantizeBias=False in ONNX Runtime.",
            )


def zero_points(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """A zero point other than zero: TensorRT quantizes symmetrically."""
    if target.engine != "tensorrt":
        return
    for node in graph.nodes("QuantizeLinear", "DequantizeLinear"):
        values = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if values is not None and np.any(values.astype(np.float32) != 0):
            yield _finding(
                graph,
                node,
                "zero-point",
                f"its zero point is {values.astype(np.float32).flat[0]:g}, and {target.title} quantizes symmetrically",
                "Quantize with --target tensorrt (symmetric int8).",
            )


def scales(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """A scale that is zero, negative or not finite: it stands for no step. Tiny ones become zero in float16."""
    for node in graph.nodes("QuantizeLinear", "DequantizeLinear"):
        values = graph.array(node.input[1]) if len(node.input) > 1 else None
        if values is None:
            continue
        steps = values.astype(np.float32)
        wrong = steps[~(np.isfinite(steps) & (steps > 0))]
        if wrong.size:
            yield _finding(
                graph,
                node,
                "scale",
                f"{wrong.size} of its {steps.size} scales are not positive numbers (the first is {wrong.flat[0]:g})",
                "Quantize again; a float16 scale below 6e-8 is zero, so keep layers of such weights in float.",
            )


def uint8(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """Unsigned quantization: no GPU kernel of TensorRT multiplies it, and its parser takes uint8 for int8."""
    if target.engine != "tensorrt":
        return
    for node in graph.nodes("QuantizeLinear", "DequantizeLinear"):
        zero = node.input[2] if len(node.input) > 2 else ""
        kinds = {
            graph.dtype(zero),
            graph.dtype(node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]),
        }
        if TensorProto.UINT8 in kinds or TensorProto.UINT16 in kinds:
            yield _finding(
                graph,
                node,
                "uint8",
                f"it quantizes to unsigned integers, and {target.title} has kernels for signed ones only; its parser "
                "refuses them or reads them as int8",
                "Quantize with --target tensorrt (symmetric int8).",
            )


def weight_axis(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """Per-channel weight scales along another axis than the output channel: the product cannot be done in int8."""
    for node in graph.nodes(*_GEMMS):
        if len(node.input) < 2:
            continue
        weight = graph.origin(node.input[1])
        if weight is None or weight.op_type != "DequantizeLinear" or not graph.is_constant(weight.output[0]):
            continue
        scale = graph.shape(weight.input[1])
        shape = graph.shape(weight.input[0])
        if scale is None or shape is None or int(np.prod(scale, dtype=np.int64)) == 1:
            continue
        found = _attribute(weight, "axis", 1) % len(shape)
        wanted = _output_axis(graph, node, weight, len(shape))
        if wanted is not None and found != wanted:
            yield _finding(
                graph,
                weight,
                "weight-axis",
                f"its scales run along axis {found} of {list(shape)}; the output channel of {node.op_type} "
                f"'{graph.name(node)}' is axis {wanted}, so no integer product can use them",
                "Quantize weights per output channel.",
            )


def cast_after_dequantize(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """A Cast between DequantizeLinear and the product: the pattern no longer matches, and the product runs in float."""
    for node in graph.nodes("Cast"):
        source = graph.origin(node.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            continue
        reader = next((item for item in graph.readers(node.output[0]) if item.op_type in _GEMMS), None)
        if reader is not None:
            yield _finding(
                graph,
                node,
                "cast-after-dq",
                f"it stands between the DequantizeLinear '{graph.name(source)}' and {reader.op_type} "
                f"'{graph.name(reader)}', which therefore runs in float",
                "Give the scales the type of the body (fp16 scales need opset 19), so that no Cast is needed.",
            )


def orphans(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """Q without DQ, DQ that feeds nothing quantizable, products with one quantized operand: cost without gain."""
    for node in graph.nodes("QuantizeLinear"):
        readers = graph.readers(node.output[0])
        if any(reader.op_type != "DequantizeLinear" for reader in readers) or not readers:
            yield _finding(
                graph,
                node,
                "orphan-qdq",
                "its output is read by something other than a DequantizeLinear",
                "Let a DequantizeLinear with the same scale follow every QuantizeLinear.",
            )
    for node in graph.nodes("DequantizeLinear"):
        readers = graph.readers(node.output[0])
        if graph.dtype(node.input[0]) == TensorProto.INT32 or any(item.op_type == "Cast" for item in readers):
            continue
        if not any(reader.op_type in _QUANTIZABLE for reader in readers):
            names = ", ".join(sorted({reader.op_type for reader in readers})) or "nothing"
            yield _finding(
                graph,
                node,
                "orphan-qdq",
                f"it feeds {names}, which gains nothing from quantized input",
                "Remove this Q/DQ pair: it costs accuracy and time.",
                severity="warning",
            )
    for node in graph.nodes("MatMul", "Gemm", "Conv"):
        quantized = [_is_dequantized(graph, name) for name in node.input[:2]]
        if quantized == [True, False] or (quantized == [False, True] and not graph.is_constant(node.input[1])):
            missing = "second" if quantized[0] else "first"
            yield _finding(
                graph,
                node,
                "half-quantized",
                f"only one operand is quantized ({missing} is not), so the product runs in float",
                "Quantize both operands, or neither.",
            )


def _is_dequantized(graph: LintGraph, tensor: str) -> bool:
    node = graph.origin(tensor)
    while node is not None and node.op_type == "Cast":
        node = graph.origin(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _output_axis(graph: LintGraph, node: NodeProto, weight: NodeProto, rank: int) -> int | None:
    """Return the axis of the stored weight that becomes the output channel; None where a reshape hides it."""
    axis = rank - 1
    if node.op_type == "Conv":
        axis = 0
    elif node.op_type == "ConvTranspose":
        axis = 1
    elif node.op_type == "Gemm":
        axis = 0 if _attribute(node, "transB", 0) else 1
    # Walk from the product back to the weight through at most transposes.
    current = graph.producers.get(node.input[1])
    while current is not None and current is not weight:
        if current.op_type != "Transpose":
            return None
        order = next((list(item.ints) for item in current.attribute if item.name == "perm"), list(range(rank))[::-1])
        axis = order[axis]
        current = graph.producers.get(current.input[0])
    return axis


def _attribute(node: NodeProto, name: str, default: int) -> int:
    for item in node.attribute:
        if item.name == name:
            return int(helper.get_attribute_value(item))
    return default


def _finding(
    graph: LintGraph, node: NodeProto, rule: str, why: str, fix: str, *, severity: Severity = "error"
) -> Finding:
    return Finding(rule, severity, graph.name(node), graph.module(node), why, fix)
