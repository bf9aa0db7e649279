"""Layers and attentions that stay float because the user named them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import onnx_ir as ir

from vitexport.errors import QuantizeError
from vitexport.host.graph.layers import find_attention, find_linears
from vitexport.host.graph.scopes import MERGED_KEY
from vitexport.host.quantize.planning.layers import QuantizedLayer, group_name

__all__ = ["Excluded", "find_excluded"]

_ROLES = ("qkv", "proj", "fc1", "fc2", "attention")


@dataclass(frozen=True)
class Excluded:
    """What was named.

    Attributes:
        names: Layers and attentions that would have been quantized, by module name, in the order of execution.
        reasons: Which entry named them, by group; by name where another layer of the group is quantized.
    """

    names: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """Something that can be named.

    Attributes:
        name: Module name.
        group: ``BLOCK.ROLE``; the name outside of blocks.
        modules: The modules that one merged projection stands for.
    """

    name: str
    group: str
    modules: tuple[str, ...] = ()

    def matches(self, entry: str) -> bool:
        """Return whether an entry of ``quantize.exclude`` names this."""
        names = (self.name, *self.modules)
        role = "" if self.group == self.name else self.group.rpartition(".")[2]
        inside = any(name.startswith(f"{entry}.") for name in names)
        return inside or any(fnmatchcase(name, entry) for name in (*names, self.group, role))


def find_excluded(
    model: ir.Model, layers: Sequence[QuantizedLayer], attention: Collection[str], entries: Sequence[str]
) -> Excluded:
    """Return what the entries of ``quantize.exclude`` name.

    An entry is a module name (of a layer or of one that holds layers), a group such as ``7.fc2``, a role, or a shell
    pattern on any of these. It may name what stays float anyway, such as the head.

    Args:
        model: The float graph.
        layers: All layers that could be quantized.
        attention: Names of all attentions that would be quantized.
        entries: What the user wrote.

    Raises:
        QuantizeError: An entry names nothing, or nothing is left to quantize.
    """
    if not entries:
        return Excluded()
    parts = _parts(model)
    for entry in entries:
        if not any(part.matches(entry) for part in parts):
            raise _nothing(entry, parts)
    quantizable = {layer.name for layer in layers} | set(attention)
    named: dict[str, str] = {}
    for part in parts:
        first = next((entry for entry in entries if part.matches(entry)), None)
        if first is not None and part.name in quantizable:
            named[part.name] = f"excluded by `{first}`"
    if quantizable <= named.keys():
        raise QuantizeError(
            f"Expected something left to quantize, found every layer excluded by {', '.join(map(repr, entries))}.",
            "Exclude less, or keep the float model as it is.",
        )
    whole = {part.group for part in parts if part.name in named}
    whole -= {part.group for part in parts if part.name in quantizable - named.keys()}
    reasons = {
        part.group if part.group in whole else part.name: named[part.name] for part in parts if part.name in named
    }
    return Excluded(tuple(named), reasons)


def _parts(model: ir.Model) -> list[_Part]:
    """Return everything with a name, layers and attentions, those that always stay float among them."""
    parts = []
    for layer in find_linears(model):
        group = group_name(layer.name, layer.block, layer.role)
        merged = layer.matmul.metadata_props.get(MERGED_KEY, "")
        parts.append(_Part(layer.name, group, tuple(merged.split(",")) if merged else ()))
    attentions = find_attention(model)
    return [*parts, *(_Part(one.name, group_name(one.name, one.block, "attention")) for one in attentions)]


def _nothing(entry: str, parts: Sequence[_Part]) -> QuantizeError:
    known = list(dict.fromkeys(name for part in parts for name in (part.name, part.group, *part.modules)))
    parent, dot, last = entry.rpartition(".")
    ends = [f"{parent}{dot}{end}" for end in difflib.get_close_matches(last, {one.rpartition(".")[2] for one in known})]
    likely = [f"{entry}.*", *sorted(ends)]
    near = [one for one in likely if any(part.matches(one) for part in parts)]
    near = near or difflib.get_close_matches(entry, [*known, *_ROLES])
    example = next((part for part in parts if part.group != part.name), parts[0] if parts else _Part("head", "head"))
    some = f"a module such as `{example.name}`, a group such as `{example.group}`, a role ({', '.join(_ROLES)})"
    hint = f"Did you mean {' or '.join(f'`{name}`' for name in near)}? " if near else ""
    return QuantizeError(
        f"Expected `quantize.exclude` to name layers, found none that `{entry}` names.",
        f"{hint}Write {some}, or a shell pattern on these.",
    )
