"""What a Vision Transformer graph is made of: its linear layers and its attentions, found by structure.

Works on any graph of weighted MatMuls, Softmax and MatMuls; names come from the PyTorch modules where the file carries
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from vitexport.host.graph.constants import is_constant
from vitexport.host.graph.hadamard import is_rotation
from vitexport.host.graph.scopes import block_path, module_of

__all__ = ["Attention", "LinearLayer", "Role", "block_of", "find_attention", "find_linears", "linear_at", "origins_of"]

Role = Literal["qkv", "proj", "fc1", "fc2", "patch", "head", "other"]

VIEWS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Flatten", "Identity"})
_ELEMENTWISE = VIEWS | {
    *("Add", "Sub", "Mul", "Div", "Neg", "Concat", "Cast", "QuantizeLinear", "DequantizeLinear", "Sqrt", "Pow"),
    *("LayerNormalization", "RMSNormalization", "ReduceMean", "Reciprocal", "Expand"),
}
_ACTIVATIONS = frozenset({"Gelu", "Relu", "Erf", "Sigmoid", "Tanh", "HardSwish", "FastGelu", "QuickGelu", "Swish"})


@dataclass(frozen=True)
class LinearLayer:
    """A weighted MatMul (or Gemm, or the patch embedding's Conv) with its bias.

    Attributes:
        name: Dotted path of its PyTorch module, e.g. ``blocks.7.mlp.fc2``; the node's name where the file has none.
        block: Index of its transformer block, or None outside of blocks.
        role: What it does.
        matmul: The node that holds the weight: MatMul (weight ``[in, out]``), Gemm, or Conv for the patch embedding.
        weight: Its weight, an initializer.
        add: The Add node of its bias, or None.
        bias: Its bias, or None.
    """

    name: str
    block: int | None
    role: Role
    matmul: ir.Node
    weight: ir.Value
    add: ir.Node | None
    bias: ir.Value | None

    @property
    def output(self) -> ir.Value:
        """The value after the bias."""
        return (self.add or self.matmul).outputs[0]

    @classmethod
    def of(cls, node: ir.Node, role: Role = "other", block: int | None = None) -> LinearLayer | None:
        """Describe the linear layer at ``node``, or return None if it is none."""
        parts = linear_at(node)
        return None if parts is None else cls(module_of(node) or str(node.name), block, role, node, *parts)


@dataclass(frozen=True)
class Attention:
    """One ``softmax(q @ k^T [+ bias]) @ v``.

    Attributes:
        name: Dotted path of its PyTorch module; the Softmax node's name where the file has none.
        block: Index of its transformer block, or None outside of blocks (attention pooling).
        scores: The MatMul of query and transposed key.
        bias: What is added to the scores (relative position bias or mask), or None.
        softmax: The Softmax node.
        context: The MatMul of probabilities and value.
    """

    name: str
    block: int | None
    scores: ir.Node
    bias: ir.Value | None
    softmax: ir.Node
    context: ir.Node


def find_attention(model: ir.Model) -> tuple[Attention, ...]:
    """Return every attention of the main graph, in execution order."""
    attentions: list[Attention] = []
    blocks: dict[str, int] = {}
    for node in model.graph:
        parts = _attention_at(node)
        if parts is None:
            continue
        scores, bias, context = parts
        module = module_of(node)
        prefix = block_path(module)
        block = None if module and prefix is None else blocks.setdefault(prefix or node.name or "", len(blocks))
        attentions.append(Attention(module or str(node.name), block, scores, bias, node, context))
    return tuple(attentions)


def block_of(node: ir.Node, attentions: Sequence[Attention]) -> int | None:
    """Return the index of the transformer block a node belongs to by its module, or None.

    Args:
        node: A node of a graph that carries module names.
        attentions: What :func:`find_attention` returned for the graph.
    """
    prefixes = {prefix: a.block for a in attentions if (prefix := block_path(a.name)) is not None}
    module = module_of(node)
    while module:
        if module in prefixes:
            return prefixes[module]
        module = module.rpartition(".")[0]
    return None


def find_linears(model: ir.Model) -> tuple[LinearLayer, ...]:
    """Return every linear layer of the main graph, in execution order, with its role and block."""
    attentions = find_attention(model)
    roles: dict[ir.Node, tuple[Role, int | None]] = {}
    after = VIEWS | {"Mul"}  # by the maxima of rows of probabilities that were divided by them
    for attention in attentions:
        for value in (*attention.scores.inputs[:2], attention.context.inputs[1]):
            roles.update(dict.fromkeys(origins_of(value), ("qkv", attention.block)))
        roles.update(dict.fromkeys(_linears_after(attention.context.outputs[0], after), ("proj", attention.block)))
    named = any(block_path(a.name) is not None for a in attentions)
    layers: list[LinearLayer] = []
    block: int | None = None
    for node in model.graph:
        if linear_at(node) is None:
            continue
        if node in roles:
            role, block = roles[node]
        else:
            role = _role_outside_attention(node)
            block = block_of(node, attentions) if named else block
        inside = block if role in ("qkv", "proj", "fc1", "fc2") else None
        layer = LinearLayer.of(node, role, inside)
        assert layer is not None
        answers = layer.output.is_graph_output() and not layer.output.consumers()
        layers.append(replace(layer, role="head", block=None) if answers and role in ("fc2", "other") else layer)
    return _with_unique_names(layers)


def _with_unique_names(layers: list[LinearLayer]) -> tuple[LinearLayer, ...]:
    """Number the later ones of several layers of one module, such as queries and keys of an attention pooling."""
    seen: dict[str, int] = {}
    unique = []
    for layer in layers:
        count = seen[layer.name] = seen.get(layer.name, -1) + 1
        unique.append(replace(layer, name=f"{layer.name}[{count}]") if count else layer)
    return tuple(unique)


def linear_at(node: ir.Node) -> tuple[ir.Value, ir.Node | None, ir.Value | None] | None:
    """Return (weight, bias Add, bias) if ``node`` is a linear layer's MatMul, Gemm or patch Conv, else None."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.domain != "" or weight is None or is_constant(node.inputs[0]) or not _is_weight(weight):
        return None
    if node.op_type == "Gemm" or (node.op_type == "Conv" and _is_patch_embedding(node)):
        return weight, None, node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type != "MatMul" or weight.shape is None or len(weight.shape) != 2 or is_rotation(node):
        return None
    uses = node.outputs[0].uses()
    if len(uses) == 1 and not node.outputs[0].is_graph_output():
        add = next(iter(uses)).node
        other = next((v for v in add.inputs if v is not node.outputs[0]), None) if add.op_type == "Add" else None
        if other is not None and _is_weight(other) and other.shape is not None and len(other.shape) == 1:
            return weight, add, other
    return weight, None, None


def _is_weight(value: ir.Value) -> bool:
    """Return whether a value is a constant, possibly behind the DequantizeLinear of a quantized weight."""
    producer = value.producer()
    if producer is not None and producer.op_type in ("DequantizeLinear", "QuantizeLinear"):
        source = producer.inputs[0]
        return source is not None and _is_weight(source)
    return is_constant(value)


def _is_patch_embedding(node: ir.Node) -> bool:
    kernel, strides = node.attributes.get("kernel_shape"), node.attributes.get("strides")
    return kernel is not None and strides is not None and list(kernel.as_ints()) == list(strides.as_ints())


def _attention_at(node: ir.Node) -> tuple[ir.Node, ir.Value | None, ir.Node] | None:
    """Return (scores MatMul, additive bias, context MatMul) around a Softmax, or None."""
    if node.op_type != "Softmax":
        return None
    context = _sole_matmul(node.outputs[0])
    value, bias = node.inputs[0], None
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "MatMul" and not is_constant(producer.inputs[1]):
            return None if context is None else (producer, bias, context)
        if producer.op_type == "Add":
            behind = [v for v in producer.inputs if v is not None and _reaches_matmul(v)]
            if len(behind) != 1:
                return None
            bias = next(v for v in producer.inputs if v is not behind[0])
            value = behind[0]
        elif producer.op_type in ("Mul", "Div", "Cast", "Reshape", "QuantizeLinear", "DequantizeLinear"):
            value = next((v for v in producer.inputs if v is not None and not is_constant(v)), None)
        else:
            return None
    return None


def _sole_matmul(value: ir.Value) -> ir.Node | None:
    """Return the MatMul that consumes ``value``, looking through casts, guards, Q/DQ and a division by row maxima."""
    for node in value.consumers():
        if node.op_type == "MatMul":
            return node
        if node.op_type in ("Cast", "Where", "Div", "QuantizeLinear", "DequantizeLinear", "Identity"):
            matmul = _sole_matmul(node.outputs[0])
            if matmul is not None:
                return matmul
    return None


def _reaches_matmul(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type == "MatMul":
        return not is_constant(producer.inputs[1])
    through = producer.op_type in ("Add", "Mul", "Div", "Cast", "Reshape", "QuantizeLinear", "DequantizeLinear")
    return through and any(v is not None and _reaches_matmul(v) for v in producer.inputs)


def origins_of(value: ir.Value | None) -> tuple[ir.Node, ...]:
    """Return the linear layers whose output reaches ``value`` through views, rotations and norms."""
    origins: list[ir.Node] = []
    seen: set[ir.Node] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        node = None if current is None else current.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if linear_at(node) is not None:
            origins.append(node)
        elif node.op_type in _ELEMENTWISE:
            pending.extend(node.inputs)
    return tuple(origins)


def _linears_after(value: ir.Value, through: frozenset[str]) -> Iterator[ir.Node]:
    """Yield the linear layers that consume ``value`` through nodes of the given kinds or Q/DQ."""
    for node in value.consumers():
        if linear_at(node) is not None:
            yield node
        elif node.op_type in through or node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
            for output in node.outputs:
                yield from _linears_after(output, through)


def _role_outside_attention(node: ir.Node) -> Role:
    if node.op_type == "Conv":
        return "patch"
    if _between_activation(node, forward=True):
        return "fc1"
    if _between_activation(node, forward=False):
        return "fc2"
    rank = None if node.inputs[0] is None or node.inputs[0].shape is None else len(node.inputs[0].shape)
    return "head" if rank == 2 else "other"


def _between_activation(node: ir.Node, *, forward: bool) -> bool:
    """Return whether an activation lies between this linear layer and the next (or previous) one."""
    through = VIEWS | {"Add", "Sub", "Mul", "Div", "Pow", "Cast", "QuantizeLinear", "DequantizeLinear"}
    through |= {"LayerNormalization"}
    pending: list[tuple[ir.Node, bool]] = [(n, False) for n in _neighbours(node, forward)]
    seen: set[tuple[ir.Node, bool]] = set()
    while pending:
        current, activated = pending.pop()
        if (current, activated) in seen:
            continue
        seen.add((current, activated))
        if linear_at(current) is not None:
            if activated:
                return True
        elif (current.op_type in _ACTIVATIONS | through and not _is_residual(current)) or is_rotation(current):
            now = activated or current.op_type in _ACTIVATIONS
            pending.extend((n, now) for n in _neighbours(current, forward))
    return False


def _neighbours(node: ir.Node, forward: bool) -> list[ir.Node]:
    if forward:
        return [consumer for output in node.outputs for consumer in output.consumers()]
    return [producer for v in node.inputs if v is not None and (producer := v.producer()) is not None]


def _is_residual(node: ir.Node) -> bool:
    return node.op_type == "Add" and not any(is_constant(v) for v in node.inputs)
