"""For every lint rule a model that breaks it and one that keeps it, for the linter and for TensorRT-RTX's parser."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from tests.support.onnx_graphs import FLOATS, Graph, attention, floating, linear, normal, operator

__all__ = ["CASES", "Make"]

Make = Callable[[], onnx.ModelProto]


def _orphan_q() -> onnx.ModelProto:
    graph = Graph()
    scale = graph.weight(np.float32(0.05).reshape(()), "s")
    zero = graph.weight(np.asarray(0, np.int8), "z")
    quantized = graph.node("QuantizeLinear", ["x", scale, zero], "x_q")
    floats = graph.node("Cast", [quantized], "cast", to=TensorProto.FLOAT)
    return graph.model(graph.node("MatMul", [floats, graph.weight(normal(64, 32), "w")], "fc"))


def _orphan_dq() -> onnx.ModelProto:
    graph = Graph()
    return graph.model(graph.node("Softmax", [graph.quantize("x")], "softmax"))


def _gemm_with_transposed_weight(axis: int) -> onnx.ModelProto:
    graph = Graph()
    weight = graph.quantized_weight(normal(32, 64), axis=axis)
    flat = graph.node("Reshape", ["x", graph.weight(np.asarray([-1, 64]), "shape")], "flat")
    return graph.model(graph.node("Gemm", [graph.quantize(flat), weight], "fc", transB=1))


def _matmul_with_transposed_weight(axis: int) -> onnx.ModelProto:
    graph = Graph()
    weight = graph.node("Transpose", [graph.quantized_weight(normal(32, 64), axis=axis)], "turn", perm=[1, 0])
    return graph.model(graph.node("MatMul", [graph.quantize("x"), weight], "fc"))


def _attention_operator(base: str) -> onnx.ModelProto:
    # Projections of their own: TensorRT-RTX's compiler crashes when one graph input is query, key and value.
    graph = Graph()
    weights = [graph.weight(normal(64, 64, dtype=FLOATS[base]), name) for name in "qkv"]
    parts = [graph.node("MatMul", ["x", weight], f"{weight}_proj") for weight in weights]
    output = graph.node("Attention", parts, "attention")
    return graph.model(output, shape=("batch", 2, 64, 64), dtype=FLOATS[base], opset=23)


INT8_ATTENTION = ("q", "k", "p", "v")

# rule, target, a model that breaks it, a model that keeps it, whether TensorRT-RTX refuses the broken one
CASES: dict[str, tuple[str, str, Make, Make, bool]] = {
    "unknown operator": ("operator", "tensorrt:rtx", lambda: operator("Det"), lambda: operator("Relu"), True),
    "integer operator": (
        "operator",
        "tensorrt:rtx",
        lambda: operator("BitwiseNot"),
        lambda: operator("Neg"),
        True,
    ),
    "operator newer than 10.3": (
        "operator",
        "tensorrt:10.3",
        lambda: _attention_operator("fp16"),
        lambda: attention(base="fp16"),
        False,
    ),
    "opset": ("opset", "tensorrt:10.3", lambda: operator("Relu", opset=22), lambda: operator("Relu"), False),
    "dynamic axis": (
        "dynamic-axes",
        "tensorrt",
        lambda: floating(shape=("batch", "tokens", 64)),
        floating,
        True,
    ),
    "float64 input": ("float64", "tensorrt", lambda: floating(dtype=np.dtype(np.float64)), floating, False),
    "bias": ("int32-bias", "tensorrt", lambda: linear(quantized_bias=True), linear, True),
    "activation zero point": ("zero-point", "tensorrt", lambda: linear(zero=3), linear, True),
    "weight zero point": ("zero-point", "tensorrt", lambda: linear(weight_zero=1), linear, True),
    "scale of zero": ("scale", "tensorrt", lambda: linear(scale=0.0), linear, True),
    "negative scale": ("scale", "tensorrt", lambda: linear(scale=-0.05), linear, True),
    "scale that is no number": ("scale", "tensorrt", lambda: linear(scale=float("nan")), linear, True),
    "uint8 with zero point": ("uint8", "tensorrt", lambda: linear(activation="uint8", zero=128), linear, True),
    "uint8": ("uint8", "tensorrt", lambda: linear(activation="uint8"), linear, False),
    "weight axis": ("weight-axis", "tensorrt", lambda: linear(axis=0), linear, False),
    "weight axis of Gemm": (
        "weight-axis",
        "tensorrt",
        lambda: _gemm_with_transposed_weight(1),
        lambda: _gemm_with_transposed_weight(0),
        False,
    ),
    "weight axis behind Transpose": (
        "weight-axis",
        "tensorrt",
        lambda: _matmul_with_transposed_weight(1),
        lambda: _matmul_with_transposed_weight(0),
        False,
    ),
    "cast": ("cast-after-dq", "tensorrt", lambda: linear(cast=True), linear, False),
    "orphan Q": ("orphan-qdq", "tensorrt", _orphan_q, linear, False),
    "orphan DQ": ("orphan-qdq", "tensorrt", _orphan_dq, linear, False),
    "half quantized": ("half-quantized", "tensorrt", lambda: linear(quantize_weight=False), linear, False),
    "guards": ("attention-guards", "tensorrt", lambda: attention(guards=True), attention, False),
    "head size": (
        "attention-size",
        "tensorrt",
        lambda: attention(head=80, quantized=INT8_ATTENTION),
        lambda: attention(quantized=INT8_ATTENTION),
        False,
    ),
    "sequence": (
        "attention-size",
        "tensorrt",
        lambda: attention(sequence=577, quantized=INT8_ATTENTION),
        lambda: attention(sequence=577),
        False,
    ),
    "part of an attention": (
        "attention-quantization",
        "tensorrt",
        lambda: attention(quantized=("q", "k")),
        lambda: attention(quantized=INT8_ATTENTION),
        False,
    ),
    "attention in rows": (
        "attention-rows",
        "tensorrt",
        lambda: attention(quantized=INT8_ATTENTION, rows=True),
        lambda: attention(quantized=INT8_ATTENTION),
        False,
    ),
    "part of an attention in rows": (
        "attention-quantization",
        "tensorrt",
        lambda: attention(quantized=("q", "k"), rows=True),
        lambda: attention(quantized=INT8_ATTENTION, rows=True),
        False,
    ),
    "Attention in float32": (
        "attention-float32",
        "tensorrt:11",
        lambda: _attention_operator("fp32"),
        lambda: _attention_operator("fp16"),
        True,
    ),
}
