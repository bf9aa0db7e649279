"""Where a graph can be cut: tensors that two graphs of one model have in common, named as in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vitexport.host.graph.constants import is_constant
from vitexport.host.graph.conversions import source_of
from vitexport.host.graph.layers import LinearLayer, find_attention, find_linears
from vitexport.host.graph.scopes import module_of

__all__ = ["Cut", "computed_in_float", "find_cuts"]

_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_ACTIVATIONS = frozenset({"Gelu", "Relu", "Erf", "Sigmoid", "Tanh", "HardSwish", "Swish"})


@dataclass(frozen=True)
class Cut:
    """A tensor at which the error of what lies before it is measured.

    Attributes:
        tensor: Its name.
        layer: Dotted path of the PyTorch module that made it.
        role: ``qkv``, ``proj``, ``fc1``, ``fc2``, ``patch``, ``head``, ``other`` for linear layers; ``norm``,
            ``softmax``, ``context``, ``activation``, ``residual`` (also the sum with position embeddings).
        position: Place in execution order.
    """

    tensor: str
    layer: str
    role: str
    position: int


def find_cuts(model: ir.Model) -> tuple[Cut, ...]:
    """Return every cut of the main graph, in execution order."""
    linears = find_linears(model)
    made_by: dict[ir.Node, LinearLayer] = {(layer.add or layer.matmul): layer for layer in linears}
    inner = {layer.matmul for layer in linears if layer.add is not None}
    softmaxes = {attention.softmax for attention in find_attention(model)}
    contexts = {source_of(layer.matmul.inputs[0]) for layer in linears if layer.role == "proj"}
    cuts: list[Cut] = []
    for position, node in enumerate(model.graph):
        if node in inner or not node.outputs or node.outputs[0].name is None:
            continue
        role = _role(node, made_by, softmaxes)
        if role is None and node.outputs[0] in contexts:
            role = "context"
        if role is not None:
            linear = made_by.get(node)
            name = linear.name if linear is not None else module_of(node) or str(node.name)
            cuts.append(Cut(str(node.outputs[0].name), name, role, position))
    return tuple(cuts)


def _role(node: ir.Node, made_by: dict[ir.Node, LinearLayer], softmaxes: set[ir.Node]) -> str | None:
    if node in made_by:
        return made_by[node].role
    if node in softmaxes:
        return "softmax"
    if node.op_type in _NORMS:
        return "norm"
    if node.op_type in _ACTIVATIONS:
        return "activation"
    if node.op_type == "Add" and not any(_is_vector(value) for value in node.inputs):
        return "residual"
    return None


def _is_vector(value: ir.Value | None) -> bool:
    """Return whether a value is a constant of one axis: a bias. Position embeddings have more."""
    return value is not None and is_constant(value) and (value.shape is None or len(value.shape) <= 1)


def computed_in_float(layer: LinearLayer) -> bool:
    """Return whether neither input nor weight of a linear layer passes through a lower precision."""
    return all(source_of(value) is value for value in (layer.matmul.inputs[0], layer.weight))
