"""Small Hugging Face checkpoints with every kind of head, each parameter perturbed from a fixed seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

__all__ = ["save_vit"]

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}


def save_vit(folder: Path, **config: Any) -> Path:
    """Save a ViT of 32 x 32 pixels with its processor, as a Trainer leaves one.

    Args:
        folder: Where to.
        **config: Of ``ViTConfig``, e.g. ``num_labels`` or ``problem_type``.
    """
    # Draws of its own: a test must not depend on what others took from the global generator.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(**SHAPE, **config))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
