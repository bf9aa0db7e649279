"""What every source returns: a module with one input and named outputs, and its description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitexport.bundle.metadata import ModelMetadata

if TYPE_CHECKING:
    import torch

__all__ = ["LoadedModel"]


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint ready to run and to export.

    Attributes:
        module: In eval mode; ``forward(pixel_values)`` takes float32 ``[N, C, H, W]`` and returns one tensor per
            entry of ``metadata.model.outputs``. The source library's own model is its attribute ``model``.
        metadata: Identity, input and outputs, preprocessing, class names.
        notes: What a person should know of how it was loaded, e.g. that a head was left out as asked.
    """

    module: torch.nn.Module
    metadata: ModelMetadata
    notes: tuple[str, ...] = ()
