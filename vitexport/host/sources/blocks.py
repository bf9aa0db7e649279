"""Outputs of named blocks in place of a model's own: for detectors, retrieval, and whatever reads inner layers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vitexport.errors import ModelSourceError
from vitexport.host.sources.wrapping import Call, Named

__all__ = ["BlockOutputs", "first_tensor_notes", "output_name"]

_SHOWN = 12


class BlockOutputs:
    """Runs a model and returns what some of its modules gave, by their names.

    Args:
        model: The source library's model; it gets hooks on these modules.
        names: Dotted paths of its modules, in the order of the outputs.
        call: Runs the whole model.
        where: What the error message calls the model.

    Raises:
        ModelSourceError: The model has no such module, or two names are the same.
    """

    def __init__(self, model: torch.nn.Module, names: Sequence[str], call: Call, *, where: str) -> None:
        modules = dict(model.named_modules())
        unknown = [name for name in names if not name or name not in modules]
        if unknown:
            raise ModelSourceError(
                f"Expected the blocks of '{where}', found '{unknown[0]}', which is none of its modules.",
                _suggestion(unknown[0], [name for name in modules if name]),
            )
        if len(set(map(output_name, names))) < len(names):
            raise ModelSourceError(
                f"Expected blocks of different names, found {', '.join(names)}.", "Name each of them once."
            )
        self._names = tuple(names)
        self._call = call
        self._where = where
        self._given: dict[str, list[Any]] = {}
        self.firsts: set[str] = set()
        """Names of the modules that gave several tensors, of which the first is taken."""
        for name in names:
            modules[name].register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Any:
        def keep(module: torch.nn.Module, arguments: Any, result: Any) -> None:
            self._given.setdefault(name, []).append(result)

        return keep

    def __call__(self, model: Any, pixel_values: torch.Tensor) -> Named:
        self._given = {}
        self._call(model, pixel_values)
        given, self._given = self._given, {}
        return {output_name(name): self._tensor(name, given.get(name, [])) for name in self._names}

    def _tensor(self, name: str, results: Sequence[Any]) -> torch.Tensor:
        if len(results) != 1:
            raise ModelSourceError(
                f"Expected '{name}' of '{self._where}' to run once for an image, found that it runs "
                f"{len(results)} times.",
                "Name the block around it, which runs once.",
            )
        (result,) = results
        if isinstance(result, torch.Tensor):
            return result
        values = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple | list) else ()
        first = next((value for value in values if isinstance(value, torch.Tensor)), None)
        if first is None:
            raise ModelSourceError(
                f"Expected '{name}' of '{self._where}' to give a tensor, found {type(result).__name__}.",
                "Name another of its blocks.",
            )
        self.firsts.add(name)
        return first


def first_tensor_notes(call: Call) -> tuple[str, ...]:
    """Say of which blocks the first of several tensors is taken, once a model has run; nothing for other calls."""
    firsts = sorted(call.firsts) if isinstance(call, BlockOutputs) else []
    return tuple(f"'{name}' gives several tensors; the first is taken." for name in firsts)


def output_name(block: str) -> str:
    """Return the name of the graph's output for a block: letters, digits and underscores only."""
    return "".join(letter if letter.isalnum() else "_" for letter in block)


def _suggestion(name: str, available: Sequence[str]) -> str:
    """Name the modules that were probably meant: the nearest by spelling, else those nearest to the model's top."""
    close = difflib.get_close_matches(name, available, n=5, cutoff=0.7)
    if close:
        return f"Did you mean {', '.join(close)}?"
    top = sorted(available, key=lambda path: path.count("."))
    more = len(top) - _SHOWN
    return f"It has {', '.join(top[:_SHOWN])}" + (f" and {more} more." if more > 0 else ".")
