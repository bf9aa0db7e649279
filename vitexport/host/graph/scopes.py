"""Which PyTorch module a node came from, kept in the node's name and metadata, and which block a module belongs to."""

from __future__ import annotations

import re
from collections import Counter

import onnx_ir as ir

__all__ = [
    "MERGED_KEY",
    "MODULE_KEY",
    "ModuleNames",
    "block_path",
    "inherit_module",
    "module_from_exporter",
    "module_of",
]

MODULE_KEY = "vitexport.module"
"""Metadata key of a node: dotted path of its PyTorch module."""

MERGED_KEY = "vitexport.merged"
"""Metadata key of a node that stands for several modules (q, k, v): their paths, joined by commas."""

_EXPORTER_KEY = "pkg.torch.onnx.name_scopes"


def module_of(node: ir.Node) -> str:
    """Return the dotted path of the PyTorch module a node came from; empty for the model itself or unknown."""
    return node.metadata_props.get(MODULE_KEY, "")


def block_path(module: str) -> str | None:
    """Return the path of a module's transformer block, ``blocks.7`` of ``blocks.7.attn``: up to the last number.

    Args:
        module: Dotted path of a PyTorch module.

    Returns:
        None where the path has no number: outside of blocks.
    """
    match = re.match(r"(.*(?:^|\.)\d+)(?:\.|$)", module)
    return match.group(1) if match else None


def inherit_module(node: ir.Node, origin: ir.Node) -> ir.Node:
    """Give ``node`` the module of ``origin`` and return it."""
    if MODULE_KEY in origin.metadata_props:
        node.metadata_props[MODULE_KEY] = origin.metadata_props[MODULE_KEY]
    return node


def module_from_exporter(node: ir.Node, prefix: str) -> str:
    """Return a node's module from the metadata torch.onnx writes.

    Args:
        node: A node of a freshly exported graph.
        prefix: Name of the attribute of the exported module that holds the user's model.
    """
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_EXPORTER_KEY, ""))[:-1]
    modules = [scope for scope in scopes if not scope.startswith("_")]
    path = modules[-1] if modules else ""
    return path.removeprefix(prefix).removeprefix(".")


class ModuleNames(ir.passes.InPlacePass):
    """Name nodes ``MODULE/OpType``, their results alike, and weights as PyTorch parameters.

    Requires nodes that carry :data:`MODULE_KEY`; ensures unique names. Graph inputs and outputs keep theirs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename everything in the main graph."""
        graph = model.graph
        interface = (*graph.inputs, *graph.outputs)
        fixed = {id(value) for value in interface}
        taken = {str(value.name) for value in interface}
        for value in tuple(graph.initializers.values()):
            if id(value) not in fixed:
                value.name = _free(_parameter_name(value), taken)
        for node in graph:
            module = module_of(node)
            name = _free(f"{module}/{node.op_type}" if module else node.op_type, taken)
            node.name = name
            for index, output in enumerate(node.outputs):
                if id(output) not in fixed:
                    output.name = name if len(node.outputs) == 1 else _free(f"{name}:{index}", taken)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that every node has a name of its own."""
        names = Counter(node.name for node in model.graph)
        repeated = [name for name, count in names.items() if count > 1]
        if repeated:
            raise ir.passes.PostconditionError(f"Expected unique node names, found {repeated[:3]} repeated.")


def _parameter_name(value: ir.Value) -> str:
    """Return ``MODULE.weight`` or ``MODULE.bias`` for a linear layer's parameters, and the given name for others."""
    uses = tuple(value.uses())
    name = str(value.name)
    if len(uses) != 1:
        return name
    node, index = uses[0].node, uses[0].idx
    module = module_of(node)
    if not module or name.startswith(f"{module}."):
        return re.sub(r"(\.T|_\d+)+$", "", name) if module and name.startswith(f"{module}.") else name
    if node.op_type == "MatMul" and index == 1:
        return f"{module}.weight"
    return name


def _free(name: str, taken: set[str]) -> str:
    """Return ``name``, with ``_1``, ``_2``, ... appended when it is taken, and take it."""
    free, suffix = name, 1
    while free in taken:
        free, suffix = f"{name}_{suffix}", suffix + 1
    taken.add(free)
    return free
