"""Facts of a quantized ONNX file: what is 8-bit in it, how far its logits are off, whether TensorRT parses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitexport.errors import VitexportError
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.verification.accuracy import compare_top1
from vitexport.verification.parity import measure

__all__ = ["EightBit", "Score", "count_eight_bit", "logits_of", "score", "tensorrt_verdict"]

Floats = NDArray[np.float32]

_PRODUCTS = ("MatMul", "Gemm", "Conv", "FusedMatMul")
_INTEGER = {"MatMulInteger": "MatMul", "ConvInteger": "Conv", "QLinearMatMul": "MatMul", "QLinearConv": "Conv"}
_TRANSPARENT = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Slice", "Identity")


@dataclass(frozen=True)
class EightBit:
    """How many operations take 8-bit operands.

    Attributes:
        weighted: MatMul, Gemm and Conv with a constant operand.
        products: Products of two activations (attention).
        others: Operations of other kinds that read an activation through Q/DQ, residual adds for instance.
    """

    weighted: int
    products: int
    others: int


def count_eight_bit(path: Path) -> EightBit:
    """Count what computes in 8 bits: both operands integers, or both behind a DequantizeLinear."""
    graph = onnx.load(str(path), load_external_data=False).graph
    producer = {name: node for node in graph.node for name in node.output}
    constants = {entry.name for entry in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}

    def source(name: str) -> tuple[bool, bool]:
        """Return (comes from 8 bits, is constant) of an operand."""
        eight = False
        while (node := producer.get(name)) is not None and node.op_type != "Constant":
            if node.op_type == "DequantizeLinear":
                eight = True
            elif node.op_type not in (*_TRANSPARENT, "QuantizeLinear"):
                return eight, False
            name = node.input[0]
        return eight, name in constants

    weighted = products = others = 0
    for node in graph.node:
        if node.op_type in _INTEGER:
            second = 3 if node.op_type.startswith("QLinear") else 1
            constant = any(source(name)[1] for name in (node.input[0], node.input[second]))
            weighted, products = weighted + constant, products + (not constant)
        elif node.op_type in _PRODUCTS:
            operands = [source(name) for name in node.input[:2]]
            if all(eight for eight, _ in operands):
                constant = any(fixed for _, fixed in operands)
                weighted, products = weighted + constant, products + (not constant)
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear", *_TRANSPARENT):
            direct = [producer[name].op_type for name in node.input if name in producer]
            others += "DequantizeLinear" in direct
    return EightBit(weighted, products, others)


@dataclass(frozen=True)
class Score:
    """Logits of a quantized model against those of the float model, on the same images.

    Attributes:
        sqnr_db: ``10 log10(sum(float^2) / sum(difference^2))`` in dB.
        agreement: Images with the same top-1 class, in percent.
        top1_change: Points of top-1 gained (positive) or lost.
    """

    sqnr_db: float
    agreement: float
    top1_change: float


def logits_of(path: Path, images: Sequence[Floats], *, optimize: bool = True) -> Floats:
    """Run a model on each image on its own, as a latency-bound server does; returns ``[N, classes]``.

    Args:
        path: ONNX file.
        images: Preprocessed images, float32 ``[1, 3, H, W]`` each.
        optimize: Let ONNX Runtime fuse Q/DQ into integer kernels; without, the graph is computed as written.
    """
    with open_runtime(path, "onnxruntime", RuntimeOptions(optimize=optimize)) as runtime:
        name = runtime.inputs[0].name
        output = next((spec.name for spec in runtime.outputs if spec.name == "logits"), runtime.outputs[0].name)
        rows = [runtime.run({name: image})[output].astype(np.float32) for image in images]
    return np.concatenate(rows)


def score(reference: Floats, found: Floats, labels: Sequence[int]) -> Score:
    """Score logits ``[N, classes]`` against the float model's."""
    parity = measure("logits", reference, found)
    assert parity.agreement is not None
    return Score(parity.sqnr_db, 100 * parity.agreement, 0.0 - compare_top1(reference, found, labels).drop_points)


def tensorrt_verdict(path: Path) -> Mapping[str, Any]:
    """Return what TensorRT-RTX's ONNX parser says, without a GPU: ``accepts`` (None: not installed), ``reason``."""
    from vitexport.engine.network import parse_network
    from vitexport.runtimes.tensorrt.api import load_api

    try:
        api = load_api("tensorrt-rtx")
    except VitexportError as error:
        return {"accepts": None, "reason": str(error)}
    try:
        parse_network(api, path).close()
    except VitexportError as error:
        return {"accepts": False, "reason": str(error)}
    return {"accepts": True, "reason": ""}
