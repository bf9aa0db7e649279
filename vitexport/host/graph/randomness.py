"""Operators whose results change from run to run."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vitexport.host.graph.constants import array_of
from vitexport.host.graph.scopes import module_of

__all__ = ["RANDOM", "describe_random", "random_nodes"]

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
"""Every operator of the standard that draws numbers, but for Dropout, which draws them in training only."""

_NAMED = 3


def random_nodes(model: ir.Model) -> tuple[ir.Node, ...]:
    """Return every node that draws random numbers, in the graph, its subgraphs and the functions of the model."""
    return tuple(node for node in _all_nodes(model) if _is_random(node))


def describe_random(nodes: tuple[ir.Node, ...]) -> str:
    """Say which operators draw random numbers, and in which PyTorch modules where the nodes know them."""
    named = [f"{node.op_type} in {module}" if (module := module_of(node)) else node.op_type for node in nodes]
    unique = list(dict.fromkeys(named))
    more = len(unique) - _NAMED
    return ", ".join(unique[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _is_random(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type in RANDOM or (node.op_type == "Dropout" and _drops(node))


def _drops(node: ir.Node) -> bool:
    """Return whether a Dropout may be in training mode: told so, or told by something computed."""
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is None:
        return False
    told = array_of(mode)
    if told is None and (producer := mode.producer()) is not None and "value" in producer.attributes:
        told = producer.attributes["value"].as_tensor().numpy()
    return told is None or bool(told.reshape(-1)[0])
