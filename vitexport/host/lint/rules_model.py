"""Rules about the model as a whole: operators, opset, types, dynamic axes, size, external weights."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto, defs

from vitexport.host.lint.findings import Finding, LintTarget
from vitexport.host.lint.graph import LintGraph
from vitexport.host.lint.operators import NEWER_THAN_10_3, UNSUPPORTED

__all__ = ["dynamic_axes", "external_weights", "float64", "operators", "opset", "weights_size"]

# Highest opset each release documents: operators.md of 10.3 and the "ONNX Opset Guide" of 11.
MAX_OPSET = {"10.3": 20, "11": 25, "rtx": 25}

TWO_GIB = 2**31 - 1


def operators(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """An operator that the parser does not know. ONNX Runtime runs all of ONNX's own."""
    if target.engine != "tensorrt":
        return
    for node in graph.nodes():
        standard = node.domain in ("", "ai.onnx") and defs.has(node.op_type)
        newer = target.release == "10.3" and node.op_type in NEWER_THAN_10_3
        if standard and node.op_type not in UNSUPPORTED and not newer:
            continue
        if not standard and node.op_type in {function.name for function in graph.model.functions}:
            continue
        domain = "" if node.domain in ("", "ai.onnx") else f" (domain {node.domain})"
        fix = (
            "Export with opset 20, whose operators it knows." if newer else "Replace it in the model before exporting."
        )
        if node.op_type in ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"):
            fix = "Quantize with --target tensorrt: static Q/DQ instead of integer operators."
        yield Finding(
            "operator",
            "error",
            graph.name(node),
            graph.module(node),
            f"{target.title} has no operator {node.op_type}{domain}",
            fix,
        )


def opset(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """An opset newer than the release documents; its parser reads it on a best-effort basis."""
    highest = MAX_OPSET.get(target.release)
    if highest is not None and graph.opset > highest:
        yield Finding(
            "opset",
            "warning",
            "",
            "",
            f"the model has opset {graph.opset}, and {target.title} documents operators up to opset {highest}",
            f"Export with --opset {highest} or lower.",
        )


def float64(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """Double precision: TensorRT computes it in float32."""
    if target.engine != "tensorrt":
        return
    for value in (*graph.model.graph.input, *graph.model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            yield Finding(
                "float64",
                "warning",
                value.name,
                "",
                f"'{value.name}' is float64, which {target.title} computes in float32",
                "Export the model in float32.",
            )
    for node in graph.nodes("MatMul", "Gemm", "Conv"):
        if any(graph.dtype(name) == TensorProto.DOUBLE for name in node.input):
            yield Finding(
                "float64",
                "warning",
                graph.name(node),
                graph.module(node),
                f"it multiplies float64, which {target.title} computes in float32",
                "Export the model in float32.",
            )


def dynamic_axes(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """A dynamic axis that no optimisation profile covers: the batch always has one, other axes need a range."""
    if target.engine != "tensorrt":
        return
    for value in graph.model.graph.input:
        if value.name in graph.constants or value.name in target.shapes_given:
            continue
        shape = graph.shape(value.name) or ()
        open_axes = [str(axis) for axis, size in enumerate(shape) if size < 0 and axis > 0]
        if open_axes:
            yield Finding(
                "dynamic-axes",
                "error",
                value.name,
                "",
                f"input '{value.name}' is dynamic on axis {', '.join(open_axes)}, and no range is given for it",
                "Build with --shape NAME=MIN:OPT:MAX, or export with a fixed image size.",
            )


def weights_size(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """Weights inside a file that a protobuf message cannot hold."""
    inline = sum(len(tensor.raw_data) for tensor in graph.model.graph.initializer)
    stored = max(inline, graph.path.stat().st_size)
    if stored > TWO_GIB:
        yield Finding(
            "weights-size",
            "error",
            "",
            "",
            f"the file holds {stored / 2**30:.1f} GiB, and a protobuf message holds 2 GiB",
            "Save the model with external data (`vitexport export` does so by itself).",
        )


def external_weights(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """A weight whose external file is missing or too short."""
    for tensor in graph.model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = graph.path.parent / entries.get("location", "")
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        size = path.stat().st_size if path.is_file() else -1
        if end > size or size < 0:
            yield Finding(
                "external-weights",
                "error",
                tensor.name,
                "",
                f"its data should lie in '{path.name}' beside the model, "
                + ("which is missing" if size < 0 else f"which ends at byte {size} of {end}"),
                f"Copy '{path.name}' together with the model.",
            )
            return
