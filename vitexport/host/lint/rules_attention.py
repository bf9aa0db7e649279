"""Rules about attention: what keeps TensorRT from computing a block with one fused kernel.

Conditions of the fused kernels: the pattern BMM, (mask), Softmax, BMM with nothing else between; for int8, compute
capability 7.5 or later, head size 16, 32 or 64, sequence up to 512, and Q/DQ on all of BMM1's and BMM2's inputs, all or
nothing per block (vendor's "Fused Attention" and quantization pages).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from vitexport.host.lint.findings import Finding, LintTarget
from vitexport.host.lint.graph import PASS_THROUGH, LintGraph

__all__ = ["attention_guards", "attention_operator", "attention_quantization", "attention_rows", "attention_size"]

_INT8_HEADS = (16, 32, 64)
_INT8_SEQUENCE = 512
# What may stand between the first product and the softmax, and between the softmax and the second.
_BEFORE = ("Add", "Mul", "Div", "Cast", "Where", "QuantizeLinear", "DequantizeLinear", *PASS_THROUGH)
_AFTER = ("Cast", "Div", "QuantizeLinear", "DequantizeLinear", "Dropout", *PASS_THROUGH)
_GUARDS = ("IsNaN", "Where", "IsInf", "Max", "Clip")


@dataclass(frozen=True)
class _Block:
    first: NodeProto
    softmax: NodeProto
    second: NodeProto
    guards: tuple[NodeProto, ...]
    divided: bool  # each row of probabilities, by its maximum


def attention_guards(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """Nodes between softmax and the second product, such as the NaN guards of PyTorch's attention."""
    if target.engine != "tensorrt":
        return
    for block in _blocks(graph):
        if block.guards:
            names = ", ".join(sorted({node.op_type for node in block.guards}))
            yield Finding(
                "attention-guards",
                "warning",
                graph.name(block.softmax),
                graph.module(block.softmax),
                f"{names} between softmax and the product with V keep the attention from being fused",
                "Run `vitexport simplify`, which proves the guards unnecessary and removes them.",
            )


def attention_size(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """Head size or sequence length outside what the int8 kernels take."""
    if target.engine != "tensorrt":
        return
    for block in _blocks(graph):
        if block.divided or not all(_dequantized(graph, name) for name in block.first.input[:2]):
            continue
        query = graph.shape(block.first.input[0])
        scores = graph.shape(block.first.output[0])
        head = query[-1] if query else -1
        sequence = scores[-1] if scores else -1
        problems = []
        if head > 0 and head not in _INT8_HEADS:
            problems.append(f"head size {head} (int8 kernels take {', '.join(map(str, _INT8_HEADS))})")
        if sequence > _INT8_SEQUENCE:
            problems.append(f"a sequence of {sequence} (int8 kernels take up to {_INT8_SEQUENCE})")
        if problems:
            yield Finding(
                "attention-size",
                "warning",
                graph.name(block.first),
                graph.module(block.first),
                f"the int8 attention has {' and '.join(problems)}, so it is not fused",
                "Quantize with --attention float.",
            )


def attention_quantization(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """Some but not all operands of the two products quantized: the block falls apart into single kernels."""
    for block in _blocks(graph):
        operands = [*block.first.input[:2], *block.second.input[:2]]
        quantized = [_dequantized(graph, name) for name in operands]
        if any(quantized) and not all(quantized):
            missing = [label for label, done in zip(("Q", "K", "softmax", "V"), quantized, strict=True) if not done]
            yield Finding(
                "attention-quantization",
                "warning",
                graph.name(block.softmax),
                graph.module(block.softmax),
                f"the attention is partly quantized ({', '.join(missing)} not), and fused only with all or none",
                "Quantize with --attention int8 or int8-rows (all), or float (none).",
            )


def attention_rows(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """Rows of probabilities divided by their maxima: accurate in 8 bits, and not the pattern that is fused."""
    if target.engine != "tensorrt":
        return
    for block in _blocks(graph):
        if block.divided:
            yield Finding(
                "attention-rows",
                "info",
                graph.name(block.softmax),
                graph.module(block.softmax),
                "rows of probabilities are divided by their maxima, so the attention runs as separate kernels",
                "Quantize with --attention int8 for the form that is fused, if its accuracy is enough.",
            )


def attention_operator(graph: LintGraph, target: LintTarget) -> Iterator[Finding]:
    """An ONNX Attention node in float32: there is no fused kernel, so it is split into plain products."""
    if target.engine != "tensorrt" or target.release == "10.3":
        return
    for node in graph.nodes("Attention"):
        if graph.dtype(node.input[0]) == TensorProto.FLOAT:
            yield Finding(
                "attention-float32",
                "warning",
                graph.name(node),
                graph.module(node),
                f"{target.title} has no fused attention in float32; `vitexport build-engine` lets it be split, other "
                "builders fail",
                "Convert the model with --precision fp16, or export with opset 20.",
            )


def _blocks(graph: LintGraph) -> Iterator[_Block]:
    for softmax in graph.nodes("Softmax"):
        first = _first_product(graph, softmax.input[0])
        if first is None:
            continue
        guards: list[NodeProto] = []
        second = _second_product(graph, softmax.output[0], guards)
        if second is not None and not graph.is_constant(second.input[1]):
            divided = any(node.op_type == "ReduceMax" for node in graph.consumers.get(softmax.output[0], []))
            yield _Block(first, softmax, second, tuple(guards), divided)


def _first_product(graph: LintGraph, tensor: str) -> NodeProto | None:
    for _ in range(8):
        node = graph.producers.get(tensor)
        if node is None:
            return None
        if node.op_type == "MatMul":
            return None if graph.is_constant(node.input[1]) else node
        if node.op_type not in _BEFORE:
            return None
        # Where takes the scores as its second or third input; the others as whichever is not constant.
        position = 1 if node.op_type == "Where" else 0
        tensor = node.input[position] if not graph.is_constant(node.input[position]) else node.input[position + 1]
    return None


def _second_product(graph: LintGraph, tensor: str, guards: list[NodeProto]) -> NodeProto | None:
    for _ in range(8):
        readers = graph.consumers.get(tensor, [])
        guards += [node for node in readers if node.op_type in _GUARDS]
        following = next((node for node in readers if node.op_type not in ("IsNaN", "ReduceMax")), None)
        if following is None:
            return None
        if following.op_type == "MatMul":
            return following
        if following.op_type not in (*_AFTER, *_GUARDS):
            return None
        tensor = following.output[0]
    return None


def _dequantized(graph: LintGraph, tensor: str) -> bool:
    node = graph.origin(tensor)
    return node is not None and node.op_type == "DequantizeLinear"
