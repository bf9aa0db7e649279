"""Small ONNX graphs made by hand, each right or wrong in one way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vitexport.host.graph.hadamard import hadamard
from vitexport.tensors import ROTATION_SUFFIX

ROTATION_NODE = f"x{ROTATION_SUFFIX}"
RANDOM = np.random.default_rng(7)

FLOATS = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
QUANTIZED = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn), "uint8": np.dtype(np.uint8)}
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
    np.dtype(np.uint8): TensorProto.UINT8,
}


class Graph:
    """Collects nodes and weights and becomes a model."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._count = 0

    def weight(self, array: np.ndarray, name: str) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], name: str = "", **attributes: object) -> str:
        self._count += 1
        output = f"t{self._count}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def quantize(
        self,
        tensor: str,
        kind: str = "int8",
        *,
        scale: float = 0.05,
        zero: int = 0,
        name: str = "x",
        base: str = "fp32",
    ) -> str:
        """Q and DQ with one scale."""
        step = self.weight(np.asarray(scale, FLOATS[base]), f"{name}_scale")
        zero_point = self.weight(np.asarray(zero).astype(QUANTIZED[kind]), f"{name}_zero")
        quantized = self.node("QuantizeLinear", [tensor, step, zero_point], f"{name}_q")
        return self.node("DequantizeLinear", [quantized, step, zero_point], f"{name}_dq")

    def quantized_weight(
        self,
        array: np.ndarray,
        kind: str = "int8",
        *,
        axis: int = 1,
        zero: int = 0,
        name: str = "w",
        base: str = "fp32",
    ) -> str:
        """A stored quantized weight with only a DQ, scales along ``axis``."""
        others = tuple(index for index in range(array.ndim) if index != axis % array.ndim)
        scale = np.abs(array).max(axis=others) / (127 if kind == "int8" else 448)
        spread = np.expand_dims(scale, others)
        values = array / spread
        stored = np.round(values).astype(np.int8) if kind == "int8" else values.astype(QUANTIZED[kind])
        inputs = [
            self.weight(stored, name),
            self.weight(scale.astype(FLOATS[base]), f"{name}_scale"),
            self.weight(np.full(scale.shape, zero).astype(stored.dtype), f"{name}_zero"),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}_dq", axis=axis)

    def model(
        self,
        output: str,
        *,
        shape: Sequence[int | str] = ("batch", 8, 64),
        dtype: np.dtype = FLOATS["fp32"],
        out_dtype: np.dtype | None = None,
        opset: int = 20,
    ) -> onnx.ModelProto:
        """The model; input ``x``, output ``y`` of unknown shape."""
        self.nodes.append(helper.make_node("Identity", [output], ["y"], name="out"))
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TYPES[dtype], list(shape))],
            [helper.make_tensor_value_info("y", TYPES[out_dtype or dtype], None)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
        return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, str(path))
    return path


def normal(*shape: int, dtype: np.dtype = FLOATS["fp32"]) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(dtype)


def linear(
    *,
    activation: str = "int8",
    zero: int = 0,
    weight_zero: int = 0,
    axis: int = 1,
    cast: bool = False,
    quantized_bias: bool = False,
    kind: str = "int8",
    quantize_weight: bool = True,
    scale: float = 0.05,
) -> onnx.ModelProto:
    """``x @ w + b`` with Q/DQ, right by default."""
    graph = Graph()
    left = graph.quantize("x", activation, zero=zero, scale=scale)
    right = (
        graph.quantized_weight(normal(64, 32), kind, axis=axis, zero=weight_zero)
        if quantize_weight
        else graph.weight(normal(64, 32), "w")
    )
    dtype = FLOATS["fp32"]
    if cast:
        left = graph.node("Cast", [left], "cast_x", to=TensorProto.FLOAT16)
        right = graph.node("Cast", [right], "cast_w", to=TensorProto.FLOAT16)
        dtype = FLOATS["fp16"]
    product = graph.node("MatMul", [left, right], "fc")
    if quantized_bias:
        stored = graph.weight((normal(32) * 1000).astype(np.int32), "b")
        scale = graph.weight(np.asarray(0.001, np.float32), "b_scale")
        bias = graph.node("DequantizeLinear", [stored, scale], "b_dq")
    else:
        bias = graph.weight(normal(32, dtype=dtype), "b")
    return graph.model(graph.node("Add", [product, bias], "add"), out_dtype=dtype)


def floating(
    base: str = "fp32", *, shape: Sequence[int | str] = ("batch", 8, 64), dtype: np.dtype | None = None
) -> onnx.ModelProto:
    """``x @ w`` in one float type."""
    graph = Graph()
    kind = dtype or FLOATS[base]
    weight = graph.weight(normal(64, 32).astype(kind), "w")
    return graph.model(graph.node("MatMul", ["x", weight], "fc"), shape=shape, dtype=kind)


def rotated(base: str = "fp32") -> onnx.ModelProto:
    """``x @ w`` in int8, ``x`` rotated before it is quantized: nodes and names as the quantizer writes them."""
    graph = Graph()
    blocks = graph.node("Reshape", ["x", graph.weight(np.array([-1, 16]), "blocks")], "x.blocked")
    products = graph.node("MatMul", [blocks, graph.weight(hadamard(16).astype(FLOATS[base]), "h")], ROTATION_NODE)
    back = graph.node("Reshape", [products, graph.weight(np.array([-1, 8, 64]), "shape")], "x.rotated")
    weight = graph.quantized_weight(normal(64, 32), base=base)
    product = graph.node("MatMul", [graph.quantize(back, base=base), weight], "fc")
    return graph.model(product, dtype=FLOATS[base])


def attention(
    *,
    head: int = 64,
    sequence: int = 64,
    guards: bool = False,
    quantized: Sequence[str] = (),
    base: str = "fp32",
    rows: bool = False,
) -> onnx.ModelProto:
    """One attention block of two heads over the input as Q, K and V; ``quantized`` of q, k, p, v get Q/DQ.

    With ``rows``, rows of probabilities are divided by their maxima, and the output is multiplied by them.
    """
    graph = Graph()

    def maybe(tensor: str, name: str) -> str:
        return graph.quantize(tensor, name=name, base=base) if name in quantized else tensor

    keys = graph.node("Transpose", [maybe("x", "k")], "transpose", perm=[0, 1, 3, 2])
    scores = graph.node("MatMul", [maybe("x", "q"), keys], "bmm1")
    probabilities = graph.node("Softmax", [scores], "softmax", axis=-1)
    if guards:
        broken = graph.node("IsNaN", [probabilities], "isnan")
        zero = graph.weight(np.asarray(0, FLOATS[base]), "zero")
        probabilities = graph.node("Where", [broken, zero, probabilities], "where")
    if rows:
        axes = graph.weight(np.asarray([-1]), "axes")
        peak = graph.node("ReduceMax", [probabilities, axes], "peak", keepdims=1)
        probabilities = graph.node("Div", [probabilities, peak], "divide")
    output = graph.node("MatMul", [maybe(probabilities, "p"), maybe("x", "v")], "bmm2")
    if rows:
        output = graph.node("Mul", [output, peak], "multiply")
    return graph.model(output, shape=("batch", 2, sequence, head), dtype=FLOATS[base])


def operator(name: str, inputs: Sequence[str] = ("x",), *, opset: int = 20, **attributes: object) -> onnx.ModelProto:
    """A single operator."""
    graph = Graph()
    return graph.model(graph.node(name, inputs, name.lower(), **attributes), shape=("batch", 8, 8), opset=opset)
