"""Every model the toolkit promises, as a checkpoint built from its configuration with every parameter perturbed.

``build(row, folder)`` writes what the hub would give: a Hugging Face directory or a timm directory. ``shallow=True``
keeps the architecture and cuts depth and width, for tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitexport.recipe.settings import ModelSettings, Task

__all__ = [
    "BASE",
    "DINO",
    "DINO_PROCESSING",
    "ROWS",
    "SHALLOW_DINO",
    "Row",
    "build",
    "hugging_face_row",
    "row_named",
    "settings_of",
    "source_of",
    "timm_row",
]


@dataclass(frozen=True)
class Row:
    """One row of docs/models.md.

    Attributes:
        name: Id of the row; also the name of its checkpoint directory.
        library: ``huggingface`` or ``timm``.
        model: Hugging Face class, or timm name with tag.
        task: What is exported.
        image_size: (height, width) in pixels, or None for the checkpoint's own.
        config: Full-size settings of the Hugging Face config.
        processor: Hugging Face image processor class.
        processing: Its settings.
        shallow: What changes in the shallow variant: config settings, or timm model arguments.
        features: Blocks whose outputs are exported in place of the model's own.
        classes: Outputs of the head; None for as many as all rows have.
    """

    name: str
    library: str
    model: str
    task: Task
    image_size: tuple[int, int] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: str = "ViTImageProcessor"
    processing: Mapping[str, Any] = field(default_factory=dict)
    shallow: Mapping[str, Any] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    classes: int | None = None


def _config(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
    }


_SIZES = {
    "b32": ("base", 32, _config(768, 12, 12, 3072)),
    "b16": ("base", 16, _config(768, 12, 12, 3072)),
    "l32": ("large", 32, _config(1024, 24, 16, 4096)),
    "l16": ("large", 16, _config(1024, 24, 16, 4096)),
    "h14": ("huge", 14, _config(1280, 32, 16, 5120)),
}
BASE = _SIZES["b16"][2]
# Two blocks of width 64 keep every kind of node and run in milliseconds.
_SHALLOW = _config(64, 2, 4, 128)
_SHALLOW_TIMM = {"embed_dim": 64, "depth": 2, "num_heads": 4}
_VIT_224 = {"size": {"height": 224, "width": 224}}


def _paper_rows() -> list[Row]:
    """ViT-B/32, B/16, L/32, L/16, H/14 in both libraries: logits and features at 224, logits at the fine-tuning size.

    H/14 has no 384: the nearest multiple of its patch is 378, which timm's fine-tuned H/14 uses too.
    """
    rows = []
    for key, (size, patch, config) in _SIZES.items():
        fine = (378, 378) if patch == 14 else (384, 384)
        settings = {**config, "patch_size": patch, "image_size": 224}
        timm_name = f"vit_{size}_patch{patch}_224"
        for suffix, task, image_size in (
            ("", "classify", None),
            ("-features", "features", None),
            ("-fine", "classify", fine),
        ):
            label = f"{suffix}" if image_size is None else f"-{image_size[0]}"
            hf = {"classify": "ViTForImageClassification", "features": "ViTModel"}[task]
            rows.append(
                Row(
                    f"vit-{key}{label}-hf",
                    "huggingface",
                    hf,
                    task,
                    image_size,
                    settings,
                    processing=_VIT_224,
                    shallow=_SHALLOW,
                )
            )
            rows.append(Row(f"vit-{key}{label}-timm", "timm", timm_name, task, image_size, shallow=_SHALLOW_TIMM))
    return rows


def hugging_face_row(name: str, model: str, task: Task, config: Mapping[str, Any], processor: str, **more: Any) -> Row:
    return Row(name, "huggingface", model, task, config=config, processor=processor, **{"shallow": _SHALLOW, **more})


def timm_row(name: str, model: str, task: Task = "classify", **more: Any) -> Row:
    return Row(name, "timm", model, task, **{"shallow": _SHALLOW_TIMM, **more})


_BEIT = {
    **BASE,
    "image_size": 224,
    "patch_size": 16,
    "use_relative_position_bias": True,
    "layer_scale_init_value": 0.1,
}
DINO = {**BASE, "image_size": 518, "patch_size": 14}
DINO_PROCESSING = {
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
SHALLOW_DINO = {key: value for key, value in _SHALLOW.items() if key != "intermediate_size"}
_SWIN = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "image_size": 224}
_SHALLOW_SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}

ROWS: tuple[Row, ...] = (
    hugging_face_row(
        "google/vit-base-patch32-224-in21k",
        "ViTModel",
        "features",
        {**_SIZES["b32"][2], "patch_size": 32, "image_size": 224},
        "ViTImageProcessor",
    ),
    hugging_face_row(
        "google/vit-large-patch16-224-in21k",
        "ViTModel",
        "features",
        {**_SIZES["l16"][2], "patch_size": 16, "image_size": 224},
        "ViTImageProcessor",
    ),
    hugging_face_row(
        "google/vit-base-patch16-224",
        "ViTForImageClassification",
        "classify",
        {**BASE, "patch_size": 16, "image_size": 224},
        "ViTImageProcessor",
    ),
    timm_row("beit_base_patch16_224.in22k_ft_in22k_in1k", "beit_base_patch16_224.in22k_ft_in22k_in1k"),
    *_paper_rows(),
    timm_row("deit-timm", "deit_base_patch16_224.fb_in1k"),
    timm_row("deit-distilled-timm", "deit_base_distilled_patch16_224.fb_in1k"),
    hugging_face_row(
        "deit-hf", "DeiTForImageClassification", "classify", {**BASE, "image_size": 224}, "DeiTImageProcessor"
    ),
    hugging_face_row(
        "deit-distilled-hf",
        "DeiTForImageClassificationWithTeacher",
        "classify",
        {**BASE, "image_size": 224},
        "DeiTImageProcessor",
    ),
    hugging_face_row("beit-hf", "BeitForImageClassification", "classify", _BEIT, "BeitImageProcessor"),
    hugging_face_row(
        "beitv2-hf",
        "BeitModel",
        "features",
        {**_BEIT, "use_relative_position_bias": False, "use_shared_relative_position_bias": True},
        "BeitImageProcessor",
    ),
    timm_row("beitv2-timm", "beitv2_base_patch16_224.in1k_ft_in22k_in1k"),
    hugging_face_row(
        "dinov2-hf",
        "Dinov2Model",
        "features",
        DINO,
        "BitImageProcessor",
        processing=DINO_PROCESSING,
        shallow=SHALLOW_DINO,
    ),
    hugging_face_row(
        "dinov2-registers-hf",
        "Dinov2WithRegistersModel",
        "features",
        DINO,
        "BitImageProcessor",
        processing=DINO_PROCESSING,
        shallow=SHALLOW_DINO,
    ),
    timm_row("dinov2-timm", "vit_base_patch14_dinov2.lvd142m", "features"),
    timm_row("dinov2-registers-timm", "vit_base_patch14_reg4_dinov2.lvd142m", "features"),
    hugging_face_row(
        "dinov3-hf", "DINOv3ViTModel", "features", {**BASE, "num_register_tokens": 4}, "DINOv3ViTImageProcessor"
    ),
    timm_row("dinov3-timm", "vit_base_patch16_dinov3.lvd1689m", "features"),
    hugging_face_row(
        "siglip-hf",
        "SiglipVisionModel",
        "features",
        {**BASE, "image_size": 224, "patch_size": 16},
        "SiglipImageProcessor",
        processing=_VIT_224,
    ),
    timm_row("siglip2-timm", "vit_base_patch16_siglip_224.v2_webli", "features"),
    hugging_face_row(
        "clip-hf",
        "CLIPVisionModelWithProjection",
        "features",
        {**BASE, "image_size": 224, "patch_size": 32, "projection_dim": 512},
        "CLIPImageProcessor",
    ),
    timm_row("clip-timm", "vit_base_patch32_clip_224.openai", "features"),
    timm_row("eva02-timm", "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k"),
    hugging_face_row(
        "swin-hf", "SwinForImageClassification", "classify", _SWIN, "ViTImageProcessor", shallow=_SHALLOW_SWIN
    ),
    timm_row(
        "swin-timm",
        "swin_tiny_patch4_window7_224.ms_in1k",
        shallow={"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
    ),
)


def row_named(name: str) -> Row:
    """Return the row of that name."""
    return next(row for row in ROWS if row.name == name)


def settings_of(row: Row, folder: Path) -> ModelSettings:
    """Return what loads the checkpoint that :func:`build` wrote for a row."""
    return ModelSettings(source=source_of(row, folder), task=row.task, features=row.features)


def source_of(row: Row, folder: Path) -> str:
    """Return the model source of a checkpoint that :func:`build` wrote."""
    return f"timm:local-dir:{folder}" if row.library == "timm" else str(folder)


def build(row: Row, folder: Path, *, shallow: bool, classes: int = 1000, seed: int = 0) -> None:
    """Write the checkpoint of a row.

    Args:
        row: The row.
        folder: Directory to write.
        shallow: Two narrow blocks in place of the full size.
        classes: Classes of the head.
        seed: Seed of the weights.
    """
    import torch

    torch.manual_seed(seed)
    if row.library == "timm":
        _build_timm(row, folder, shallow, classes)
    else:
        _build_huggingface(row, folder, shallow, classes)


def _perturb(model: Any) -> None:
    """Add noise to every parameter: zero biases and unit scales would hide errors."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.02 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn_like(parameter), alpha=noise)


def _build_timm(row: Row, folder: Path, shallow: bool, classes: int) -> None:
    import timm
    from timm.models import save_for_hf

    arguments = {**(row.shallow if shallow else {}), **({"num_classes": classes} if row.task == "classify" else {})}
    if row.task == "features":
        arguments["num_classes"] = 0
    model = timm.create_model(row.model, pretrained=False, **arguments)
    _perturb(model)
    save_for_hf(model, folder, model_args=arguments, safe_serialization=True)


def _build_huggingface(row: Row, folder: Path, shallow: bool, classes: int) -> None:
    import transformers

    cls = getattr(transformers, row.model)
    labels = {index: f"class {index}" for index in range(row.classes or classes)}
    config = cls.config_class(**{**row.config, **(row.shallow if shallow else {}), "id2label": labels})
    model = cls(config)
    _perturb(model)
    model.save_pretrained(folder)
    getattr(transformers, row.processor)(**row.processing).save_pretrained(folder)
