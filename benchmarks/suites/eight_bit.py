"""What computes in 8 bits in an ONNX file, read from the file: no runtime is asked, and none has to open it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper

from vitexport.host.graph.hadamard import ROTATION_SIZES, is_hadamard

__all__ = ["EightBit", "count_eight_bit"]

_PRODUCTS = ("MatMul", "Gemm", "Conv", "FusedMatMul")
_SECOND_OPERAND = {
    **dict.fromkeys((*_PRODUCTS, "MatMulInteger", "ConvInteger"), 1),
    **dict.fromkeys(("QLinearMatMul", "QLinearConv", "QGemm"), 3),  # a, its scale, its zero point, b
}
_CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv")
_TRANSPARENT = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Slice", "Identity")
_EIGHT_BIT = (
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ,
    TensorProto.FLOAT8E5M2,
    TensorProto.FLOAT8E5M2FNUZ,
)


@dataclass(frozen=True)
class EightBit:
    """How many operations take 8-bit operands.

    Attributes:
        weighted: MatMul, Gemm and Conv with weights: a constant operand that is no rotation.
        products: Products of two activations (attention).
        others: Operations of other kinds that read an activation through Q/DQ, residual adds for instance.
        work: Fraction, 0 to 1, of the multiply-accumulates with weights that is in ``weighted``, at batch 1; None
            where there are none, or where a shape is not known.
    """

    weighted: int
    products: int
    others: int
    work: float | None


def count_eight_bit(path: Path) -> EightBit:
    """Count what computes in 8 bits: both operands integers, or both behind a DequantizeLinear of an 8-bit type."""
    graph = _Graph(path)
    weighted = products = others = 0
    work: dict[bool, list[int | None]] = {True: [], False: []}
    for node in graph.nodes:
        if node.op_type in _SECOND_OPERAND:
            names = (node.input[0], node.input[_SECOND_OPERAND[node.op_type]])
            if graph.is_rotation(names[1]):
                continue
            operands = [graph.source(name) for name in names]
            eight = node.op_type not in _PRODUCTS or all(from_eight for from_eight, _ in operands)
            constant = any(fixed for _, fixed in operands)
            weighted, products = weighted + (eight and constant), products + (eight and not constant)
            if constant:
                work[eight].append(_multiply_accumulates(node, names, graph.shapes))
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear", *_TRANSPARENT):
            direct = [graph.producer[name].op_type for name in node.input if name in graph.producer]
            others += "DequantizeLinear" in direct
    return EightBit(weighted, products, others, _fraction(work[True], work[False]))


class _Graph:
    """A graph's nodes, and what is known of its tensors."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(str(path), load_external_data=False)
        self.nodes = model.graph.node
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.constants = {entry.name for entry in model.graph.initializer}
        self.constants |= {name for node in self.nodes if node.op_type == "Constant" for name in node.output}
        self.shapes, self.types = _described(model)
        self._rotations = {
            entry.name
            for entry in model.graph.initializer
            # No other weight is read: large ones lie outside of the file.
            if list(entry.dims) in [[size, size] for size in ROTATION_SIZES]
            and is_hadamard(numpy_helper.to_array(entry, str(path.parent)))
        }

    def is_rotation(self, name: str) -> bool:
        """Return whether an operand is a Hadamard matrix, which mixes the channels of an activation."""
        return name in self._rotations

    def source(self, name: str) -> tuple[bool, bool]:
        """Return (comes from 8 bits, is constant) of an operand."""
        eight = False
        while (node := self.producer.get(name)) is not None and node.op_type != "Constant":
            if node.op_type == "DequantizeLinear":
                eight = eight or self.types.get(node.input[0]) in _EIGHT_BIT
            elif node.op_type not in (*_TRANSPARENT, "QuantizeLinear"):
                return eight, False
            name = node.input[0]
        return eight, name in self.constants


def _described(model: onnx.ModelProto) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Return the shape of every tensor at batch 1, where it is known, and the element type."""
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                axis.dim_value = 1
    # What a tool wrote about its intermediate tensors would keep the symbolic batch.
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {entry.name: entry.data_type for entry in graph.initializer}
    shapes = {entry.name: list(entry.dims) for entry in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape") and all(axis.HasField("dim_value") for axis in tensor.shape.dim):
            shapes[value.name] = [axis.dim_value for axis in tensor.shape.dim]
    return shapes, types


def _multiply_accumulates(
    node: onnx.NodeProto, operands: tuple[str, str], shapes: Mapping[str, list[int]]
) -> int | None:
    """Return the multiply-accumulates of a product, or None where a shape is not known."""
    first, second = (shapes.get(name) for name in operands)
    if not first or not second:
        return None
    if node.op_type in _CONVOLUTIONS:
        out = shapes.get(node.output[0])
        return math.prod(out) * math.prod(second[1:]) if out else None
    flags = {attribute.name: attribute.i for attribute in node.attribute if attribute.name in ("transA", "transB")}
    rows, length = first[-2:] if not flags.get("transA") else first[:-3:-1]
    columns = second[-2 if flags.get("transB") else -1]
    # Leading axes are broadcast, and each operand may be the one that has them.
    return math.prod(max(first[:-2], second[:-2], key=math.prod)) * rows * length * columns


def _fraction(inside: list[int | None], outside: list[int | None]) -> float | None:
    counts = [count for count in (*inside, *outside) if count is not None]
    if not counts or len(counts) < len(inside) + len(outside):
        return None
    return sum(count for count in inside if count is not None) / sum(counts)
