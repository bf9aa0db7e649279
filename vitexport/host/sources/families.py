"""The families this package knows by name, and what a checkpoint of each gives. Data only: importing it is cheap."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitexport.bundle.metadata import ModelSpec

__all__ = ["FAMILIES", "Family", "family_of", "generic_note", "is_known"]


@dataclass(frozen=True)
class Family:
    """One architecture family.

    Attributes:
        name: Short name, as in :attr:`vitexport.bundle.metadata.ModelSpec.family`.
        title: Name people know it by.
        huggingface: Hugging Face ``model_type`` values.
        timm: Regular expression that matches its timm architecture names; empty when timm has none.
        outputs: What it gives by task.
        example: A source to try.
    """

    name: str
    title: str
    huggingface: tuple[str, ...]
    timm: str
    outputs: str
    example: str


_BOTH = "classify: logits; features: last_hidden_state, pooler_output"

# The first match wins, so that the special ones come before vit.
FAMILIES: tuple[Family, ...] = (
    Family(
        "deit", "DeiT, with and without distillation token", ("deit",), r"deit3?_", _BOTH, "timm:deit_base_patch16_224"
    ),
    Family(
        "beit", "BEiT and BEiTv2", ("beit",), r"beit(v2)?_", _BOTH, "timm:beit_base_patch16_224.in22k_ft_in22k_in1k"
    ),
    Family(
        "dinov2",
        "DINOv2, with and without registers",
        ("dinov2", "dinov2_with_registers"),
        r"vit_.*dinov2",
        _BOTH,
        "facebook/dinov2-base",
    ),
    Family("dinov3", "DINOv3", ("dinov3_vit",), r"vit_.*dinov3", _BOTH, "facebook/dinov3-vitb16-pretrain-lvd1689m"),
    Family(
        "siglip",
        "SigLIP and SigLIP 2 vision towers (fixed resolution)",
        ("siglip", "siglip_vision_model"),
        r"vit_.*siglip",
        "classify: logits; features: last_hidden_state, pooler_output",
        "google/siglip2-base-patch16-224",
    ),
    Family(
        "clip",
        "CLIP vision towers",
        ("clip", "clip_vision_model"),
        r"vit_.*_clip_",
        "features: image_embeds, last_hidden_state; timm: classify where fine-tuned",
        "openai/clip-vit-base-patch32",
    ),
    Family("eva02", "EVA-02", (), r"eva02_", _BOTH, "timm:eva02_base_patch14_448.mim_in22k_ft_in22k_in1k"),
    Family("swin", "Swin", ("swin",), r"swin_", _BOTH, "microsoft/swin-tiny-patch4-window7-224"),
    Family(
        "segformer",
        "SegFormer",
        ("segformer",),
        "",
        "segment: logits; classify: logits; features: last_hidden_state",
        "nvidia/segformer-b0-finetuned-ade-512-512",
    ),
    Family(
        "dpt",
        "DPT",
        ("dpt",),
        "",
        "depth: predicted_depth; segment: logits; features: last_hidden_state",
        "Intel/dpt-large",
    ),
    Family(
        "depth_anything",
        "Depth Anything, both versions",
        ("depth_anything",),
        "",
        "depth: predicted_depth (name one --image-size)",
        "depth-anything/Depth-Anything-V2-Small-hf",
    ),
    Family(
        "vit_mae",
        "ViT-MAE, the encoder with every patch shown",
        ("vit_mae",),
        "",
        "features: last_hidden_state",
        "facebook/vit-mae-base",
    ),
    Family("vit", 'ViT of "An Image is Worth 16x16 Words"', ("vit",), r"vit_", _BOTH, "google/vit-base-patch16-224"),
)


def family_of(name: str, *, source: str) -> str | None:
    """Return the family of a Hugging Face ``model_type`` or a timm architecture name, or None when it is not known."""
    for family in FAMILIES:
        if source == "huggingface" and name in family.huggingface:
            return family.name
        if source == "timm" and family.timm and re.match(family.timm, name):
            return family.name
    return None


def is_known(family: str) -> bool:
    """Return whether a family is in the list; others are exported without knowledge of their architecture."""
    return any(known.name == family for known in FAMILIES)


def generic_note(spec: ModelSpec) -> str:
    """Return what is said about a model of an unlisted family."""
    return (
        f"'{spec.id}' is of the family '{spec.family}', which is not in the list of `vitexport models`: it is exported "
        "generically. Trust it as far as `vitexport verify` does."
    )
