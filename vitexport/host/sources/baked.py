"""Position embeddings, relative position biases and rotary tables depend on the image size alone: computed once, by the
source library's own code, and kept as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vitexport.host.sources.wrapping import ImageModel, describe_outputs
from vitexport.inputs.preprocess import PreprocessSpec
from vitexport.tensors import TensorSpec

__all__ = ["bake_positions"]

# Hugging Face: a method of the embeddings, and modules whose result depends on the image size only.
_METHODS = ("interpolate_pos_encoding",)
_MODULES = ("BeitRelativePositionBias", "RopePositionEmbedding", "RotaryEmbedding")


def bake_positions(module: ImageModel, preprocess: PreprocessSpec, *, where: str) -> tuple[TensorSpec, ...]:
    """Replace what depends only on the image size by what it returns for that size.

    Args:
        module: The loaded model; changed in place, its outputs stay bit for bit the same.
        preprocess: Size and channels of its images.
        where: What the error message calls the model.

    Returns:
        The model's outputs.

    Raises:
        ModelSourceError: The model does not run on images of that size.
    """
    recorded: dict[tuple[torch.nn.Module, str], list[Any]] = {}
    methods = [(m, name) for m in module.modules() if (name := _position_method(m)) is not None]
    for submodule, name in methods:
        submodule.__dict__[name] = _recorder(submodule, name, getattr(submodule, name), recorded)
    try:
        outputs = describe_outputs(module, preprocess, where=where)
    finally:
        for submodule, name in methods:
            del submodule.__dict__[name]
    for (submodule, name), results in recorded.items():
        if _is_same(results):
            submodule.__dict__[name] = _constant(submodule, name, results[0])
    return outputs


def _is_same(results: Sequence[Any]) -> bool:
    """Return whether a method gave the same tensors each time; in a pyramid it is asked for several sizes."""
    first, *others = (result if isinstance(result, tuple) else (result,) for result in results)
    return all(len(first) == len(other) and all(map(torch.equal, first, other)) for other in others)


def _position_method(module: torch.nn.Module) -> str | None:
    if type(module).__name__.endswith(_MODULES):
        return "forward"
    return next((name for name in _METHODS if hasattr(module, name)), None)


def _recorder(
    module: torch.nn.Module,
    name: str,
    function: Callable[..., Any],
    recorded: dict[tuple[torch.nn.Module, str], list[Any]],
) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        recorded.setdefault((module, name), []).append(result)
        return result

    return record


def _constant(module: torch.nn.Module, name: str, result: Any) -> Callable[..., Any]:
    """Keep tensors as buffers, so that they move and export with the module, and return a function that gives them."""
    tensors = result if isinstance(result, tuple) else (result,)
    names = [f"baked_{name}" if len(tensors) == 1 else f"baked_{name}_{index}" for index in range(len(tensors))]
    for buffer, tensor in zip(names, tensors, strict=True):
        module.register_buffer(buffer, tensor.detach().clone(), persistent=False)

    def constant(*args: Any, **kwargs: Any) -> Any:
        values = tuple(getattr(module, buffer) for buffer in names)
        return values if isinstance(result, tuple) else values[0]

    return constant
