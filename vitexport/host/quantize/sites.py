"""Where quantization happens: the weighted MatMuls of a graph, their roles, and which share an input.

This is the one place where the quantizer meets graph structure; everything else works on :class:`Site`.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Site", "find_sites"]


@dataclass(frozen=True)
class Site:
    """One weighted MatMul or Gemm, with the bias Add that follows it.

    Attributes:
        name: PyTorch module name, e.g. ``blocks.0.attn.qkv``; the node name where that is unknown.
        role: ``qkv``, ``proj``, ``fc1``, ``fc2``, ``head`` or ``other``.
        block: Module name of the transformer block, or an empty string.
        node: The MatMul or Gemm.
        bias_node: The Add after a MatMul, or None (a Gemm has its bias inside).
        transposed: The stored weight is ``[N, K]`` (Gemm with transB).
    """

    name: str
    role: str
    block: str
    node: ir.Node
    bias_node: ir.Node | None
    transposed: bool

    @property
    def input(self) -> ir.Value:
        """Activation input."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def weight_value(self) -> ir.Value:
        """Stored weight."""
        value = self.node.inputs[1]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """Output with the bias added."""
        return (self.bias_node or self.node).outputs[0]

    @property
    def group(self) -> str:
        """Name of what is demoted together: block and role."""
        return f"{self.block}:{self.role}" if self.block else self.name

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N): input and output channels."""
        tensor = self.weight_value.const_value
        assert tensor is not None
        first, second = (int(axis) for axis in tensor.shape)
        return (second, first) if self.transposed else (first, second)

    def weight(self) -> NDArray[np.float32]:
        """Return a float32 ``[K, N]`` copy of the weight."""
        tensor = self.weight_value.const_value
        assert tensor is not None
        array = np.array(tensor.numpy(), dtype=np.float32)
        return np.ascontiguousarray(array.T) if self.transposed else array


def find_sites(graph: ir.Graph) -> tuple[Site, ...]:
    """Return every weighted MatMul and Gemm in graph order, with its role where the pattern is recognised."""
    return tuple(_site(node) for node in graph if _is_weighted(node))


def _is_weighted(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return False
    weight = node.inputs[1]
    return weight is not None and weight.const_value is not None and len(weight.const_value.shape) == 2


def _site(node: ir.Node) -> Site:
    bias_node = _bias_add(node) if node.op_type == "MatMul" else None
    name, block = _module(node)
    trans = node.attributes.get("transB")
    transposed = node.op_type == "Gemm" and trans is not None and trans.as_int() == 1
    return Site(name, _role(node, bias_node), block, node, bias_node, transposed)


def _bias_add(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    constant = other is not None and other.const_value is not None and len(other.const_value.shape) == 1
    return add if constant else None


def _module(node: ir.Node) -> tuple[str, str]:
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    name = scopes[-2] if len(scopes) > 1 and scopes[-2] else (node.name or node.outputs[0].name or "")
    parts = name.split(".")
    digit = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return name, ".".join(parts[: digit + 1]) if digit is not None else ""


def _role(node: ir.Node, bias_node: ir.Node | None) -> str:
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    consumers = {use.node.op_type for use in (bias_node or node).outputs[0].uses()}
    if (bias_node or node).outputs[0].is_graph_output():
        return "head"
    if source is not None and source.op_type == "Gelu":
        return "fc2"
    if "Gelu" in consumers:
        return "fc1"
    while source is not None and source.op_type in ("Reshape", "Transpose"):
        value = source.inputs[0]
        source = value.producer() if value is not None else None
    if source is not None and source.op_type == "MatMul" and not _is_weighted(source):
        return "proj"
    if source is not None and source.op_type == "LayerNormalization":
        return "qkv"
    return "other"
