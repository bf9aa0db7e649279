"""Rules about the device: precisions its hardware does not have."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from vitexport.host.lint.findings import Finding, LintTarget
from vitexport.host.lint.graph import LintGraph

__all__ = ["device_precision", "turing_float32"]

_FP8 = (
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E5M2,
    TensorProto.FLOAT8E4M3FNUZ,
    TensorProto.FLOAT8E5M2FNUZ,
)
_FP4 = (TensorProto.FLOAT4E2M1,)


def device_precision(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """FP8, FP4, BF16 or INT8 where the device has none. One finding per precision, naming the first node."""
    if target.device is None:
        return
    kinds = {"fp8": _FP8, "fp4": _FP4, "bfloat16": (TensorProto.BFLOAT16,), "int8": (TensorProto.INT8,)}
    for precision, types in kinds.items():
        if precision in target.device.precisions:
            continue
        for node in graph.nodes("DequantizeLinear", "MatMul", "Gemm", "Conv"):
            if graph.dtype(node.input[0]) in types:
                yield Finding(
                    "device-precision",
                    "error",
                    graph.name(node),
                    graph.module(node),
                    f"the model uses {precision}, and {target.device.title} computes "
                    f"{', '.join(target.device.precisions)}",
                    "Quantize with --precision int8, or convert with --precision fp16.",
                )
                break


def turing_float32(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """Float32 products for Turing, which TensorRT-RTX does not compile; int8 with float32 scales counts as such."""
    if target.release != "rtx" or target.device is None or target.device.compute_capability != "7.5":
        return
    for node in graph.nodes("MatMul", "Gemm", "Attention"):
        if graph.dtype(node.input[0]) == TensorProto.FLOAT:
            yield Finding(
                "turing-float32",
                "error",
                graph.name(node),
                graph.module(node),
                f"it multiplies in float32, which {target.title} does not compile for {target.device.title}",
                "Convert the body with --precision fp16 (int8 layers then have fp16 scales).",
            )
