"""Encoders of masked autoencoders hide random patches, also in inference; here they see them all, in their order."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["show_every_patch"]


def show_every_patch(model: torch.nn.Module) -> bool:
    """Make a masked encoder see the whole image, as with a mask ratio of 0 and noise in ascending order.

    Args:
        model: Changed in place.

    Returns:
        Whether it was one.
    """
    masking: list[Any] = [m for m in model.modules() if hasattr(m, "random_masking") and getattr(m, "is_mae", True)]
    for module in masking:
        if hasattr(module, "is_mae"):
            module.is_mae = False  # Hiera's own switch
        else:
            module.random_masking = _keep_all
    return bool(masking)


def _keep_all(sequence: torch.Tensor, noise: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Return the tokens ``[N, L, C]`` as they come, a mask that hides none, and the order that they are in."""
    shape = sequence.shape[:2]
    order = torch.arange(shape[1], device=sequence.device).expand(shape)
    return sequence, torch.zeros(shape, device=sequence.device), order
