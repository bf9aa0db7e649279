"""One calling convention for every model: ``forward(pixel_values) -> tuple of tensors``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vitexport.errors import ModelSourceError
from vitexport.inputs.preprocess import PreprocessSpec
from vitexport.tensors import TensorSpec

__all__ = ["Call", "ImageModel", "Named", "describe_outputs", "pixel_values_spec"]

Named = Mapping[str, torch.Tensor]

Call = Callable[[Any, torch.Tensor], Named]
"""Runs a source library's model on ``pixel_values`` and returns its outputs by name."""


class ImageModel(torch.nn.Module):
    """A model whose forward takes ``pixel_values`` and returns its outputs in a fixed order.

    Args:
        model: The source library's model.
        call: Runs ``model`` and returns its outputs by name.
    """

    def __init__(self, model: torch.nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self._call = call
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model.

        Args:
            pixel_values: float32 ``[N, C, H, W]``, normalized.

        Returns:
            One tensor per output, in the order of :meth:`named`.
        """
        return tuple(self._call(self.model, pixel_values).values())

    def named(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the model and return its outputs by name."""
        return dict(self._call(self.model, pixel_values))


def pixel_values_spec(preprocess: PreprocessSpec) -> TensorSpec:
    """Return the float input ``[batch, C, H, W]`` of an exported model with a dynamic batch."""
    return TensorSpec("pixel_values", ("batch", preprocess.channels, *preprocess.image_size), "float32")


def describe_outputs(module: ImageModel, preprocess: PreprocessSpec, *, where: str) -> tuple[TensorSpec, ...]:
    """Return names, shapes and dtypes of the outputs, from one forward pass over a black image.

    Args:
        module: The model.
        preprocess: Size and channels of its images.
        where: What the error message calls the model.

    Raises:
        ModelSourceError: The model does not run on such images, or an output has no batch axis.
    """
    shape = (preprocess.channels, *preprocess.image_size)
    try:
        with torch.no_grad():
            outputs = module.named(torch.zeros(1, *shape))
    except ModelSourceError:
        raise
    except Exception as error:  # the model is its author's code, and may raise anything
        raise ModelSourceError(
            f"'{where}' does not run on images of {shape[1]} x {shape[2]} pixels and {shape[0]} channels: {error}",
            "Use the checkpoint's own image size, or a multiple of its patch size, and its number of channels.",
        ) from error
    if not outputs:
        raise ModelSourceError(
            f"'{where}' returns none of the outputs asked for.",
            "Choose another task, or name the blocks whose outputs you need with `--features`.",
        )
    specs = []
    for name, tensor in outputs.items():
        if tensor.ndim < 2 or tensor.shape[0] != 1:
            raise ModelSourceError(
                f"Expected '{where}' to return one row per image in '{name}', found the shape {tuple(tensor.shape)}.",
                "Only models that map images to tensors, image by image, can be exported.",
            )
        axes: tuple[int | str, ...] = ("batch", *(int(axis) for axis in tensor.shape[1:]))
        specs.append(TensorSpec(name, axes, str(tensor.dtype).removeprefix("torch.")))
    return tuple(specs)
