"""Rows of docs/models.md for other heads than one class of many: several labels, one logit, maps, and inner blocks."""

from __future__ import annotations

from benchmarks.suites.model_rows import (
    BASE,
    DINO,
    DINO_PROCESSING,
    ROWS,
    SHALLOW_DINO,
    Row,
    hugging_face_row,
    timm_row,
)

__all__ = ["ALL_ROWS", "HEADS", "any_row"]

_VIT_B16 = {**BASE, "patch_size": 16, "image_size": 224}
_BACKBONE = {"model_type": "dinov2", "reshape_hidden_states": False, "apply_layernorm": True, "patch_size": 14}
_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518}
_TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 70}
_DEPTH_ANYTHING = {
    "backbone_config": {**_BACKBONE, **_SMALL, "out_indices": [3, 6, 9, 12]},
    "depth_estimation_type": "metric",
    "max_depth": 20,
    "reassemble_hidden_size": 384,
    "neck_hidden_sizes": [48, 96, 192, 384],
    "fusion_hidden_size": 64,
    "head_hidden_size": 32,
}
_SHALLOW_DEPTH_ANYTHING = {
    "backbone_config": {**_BACKBONE, **_TINY, "out_indices": [1, 2, 3, 4]},
    "reassemble_hidden_size": 32,
    "neck_hidden_sizes": [8, 16, 24, 32],
    "fusion_hidden_size": 16,
    "head_hidden_size": 8,
}
_SEGFORMER = {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 160, 256], "num_attention_heads": [1, 2, 5, 8]}
_SHALLOW_SEGFORMER = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4]}
_MAE_DECODER = {"decoder_hidden_size": 512, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 16}

HEADS: tuple[Row, ...] = (
    hugging_face_row(
        "multi-label-hf",
        "ViTForImageClassification",
        "classify",
        {**_VIT_B16, "problem_type": "multi_label_classification"},
        "ViTImageProcessor",
        classes=80,
    ),
    hugging_face_row("one-logit-hf", "ViTForImageClassification", "classify", _VIT_B16, "ViTImageProcessor", classes=1),
    hugging_face_row(
        "segformer-b0-hf",
        "SegformerForSemanticSegmentation",
        "segment",
        {**_SEGFORMER, "decoder_hidden_size": 256},
        "SegformerImageProcessor",
        shallow={**_SHALLOW_SEGFORMER, "decoder_hidden_size": 32},
        classes=150,
    ),
    hugging_face_row(
        "depth-anything-small-hf",
        "DepthAnythingForDepthEstimation",
        "depth",
        _DEPTH_ANYTHING,
        "DPTImageProcessor",
        processing={"size": {"height": 518, "width": 518}, "ensure_multiple_of": 14},
        shallow=_SHALLOW_DEPTH_ANYTHING,
    ),
    hugging_face_row(
        "mae-encoder-hf", "ViTMAEForPreTraining", "features", {**_VIT_B16, **_MAE_DECODER}, "ViTImageProcessor"
    ),
    timm_row("blocks-timm", "vit_base_patch16_224", "features", features=("blocks.0", "blocks.1", "norm")),
    hugging_face_row(
        "blocks-dinov2-hf",
        "Dinov2Model",
        "features",
        DINO,
        "BitImageProcessor",
        processing=DINO_PROCESSING,
        shallow=SHALLOW_DINO,
        features=("encoder.layer.0", "encoder.layer.1", "layernorm"),
    ),
)

ALL_ROWS: tuple[Row, ...] = (*ROWS, *HEADS)
"""Every row, in the order of the table."""


def any_row(name: str) -> Row:
    """Return the row of that name."""
    return next(row for row in ALL_ROWS if row.name == name)
