"""Small Hugging Face checkpoints with every kind of head, each parameter perturbed from a fixed seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

__all__ = ["save_timm", "save_vit"]

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}


def save_vit(folder: Path, processor: Mapping[str, Any] | None = None, **config: Any) -> Path:
    """Save a ViT of 32 x 32 pixels with its processor, as a Trainer leaves one.

    Args:
        folder: Where to.
        processor: Settings of ``ViTImageProcessor`` beside its size.
        **config: Of ``ViTConfig``, e.g. ``num_labels`` or ``problem_type``.
    """
    # Draws of its own: a test must not depend on what others took from the global generator.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(**SHAPE, **config))
    _perturb(model)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, **(processor or {})).save_pretrained(folder)
    return folder


def save_timm(folder: Path, channels: int, **pretrained_cfg: Any) -> Path:
    """Save a timm ViT of 32 x 32 pixels and five classes, as timm saves one for the hub.

    Args:
        folder: Where to.
        channels: ``in_chans``.
        **pretrained_cfg: In place of what is there, e.g. ``mean`` and ``std``.
    """
    arguments = {"in_chans": channels, "img_size": 32, "depth": 2, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **arguments)
    _perturb(model)
    settings = {"input_size": [channels, 32, 32], "mean": [0.4] * channels, "std": [0.2] * channels, "num_classes": 5}
    settings |= {"interpolation": "bicubic", "crop_pct": 0.9, "first_conv": "patch_embed.proj", "classifier": "head"}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": arguments}
    config["pretrained_cfg"] = settings | pretrained_cfg
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def _perturb(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
