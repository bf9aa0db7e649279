"""Small transformers models with heads of every kind, every parameter perturbed, saved as a checkpoint with its image
processor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf

__all__ = ["CLASSES", "MODELS", "perturbed", "pixels", "save"]

CLASSES = {index: f"class {index}" for index in range(5)}
_LABELS = {"id2label": CLASSES, "label2id": {name: index for index, name in CLASSES.items()}}
_VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64, "patch_size": 8}
_MLP = {**_VIT, "intermediate_size": 64}
_SQUARE = {"size": {"height": 64, "width": 64}}
_DPT = {"is_hybrid": False, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 16}
_NECK = {"neck_hidden_sizes": [8, 16, 24, 32]}
_DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def _swin() -> Any:
    return tf.SwinConfig(
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 3, 4],
        window_size=2,
        image_size=64,
        patch_size=4,
        out_features=_STAGES,
    )


def _segformer() -> Any:
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4]}
    return tf.SegformerForSemanticSegmentation(tf.SegformerConfig(**sizes, decoder_hidden_size=32, **_LABELS))


def _depth_anything() -> Any:
    backbone = tf.Dinov2Config(**_VIT, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    config = tf.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        patch_size=8,
        fusion_hidden_size=16,
        head_hidden_size=8,
        **_NECK,
    )
    return tf.DepthAnythingForDepthEstimation(config)


def _beit() -> Any:
    beit = {"out_indices": [1, 2, 3, 4], "use_relative_position_bias": True, "pool_scales": [1, 2]}
    return tf.BeitForSemanticSegmentation(tf.BeitConfig(**_MLP, **beit, **_LABELS))


def _mask2former() -> Any:
    config = tf.Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
        **_LABELS,
    )
    return tf.Mask2FormerForUniversalSegmentation(config)


def _maskformer() -> Any:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6}
    widths = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1}
    decoder = tf.DetrConfig(d_model=16, **widths, **heads)
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32}
    config = tf.MaskFormerConfig(backbone_config=_swin(), decoder_config=decoder, **sizes, **_LABELS)
    return tf.MaskFormerForInstanceSegmentation(config)


def _upernet() -> Any:
    sizes = {"hidden_size": 16, "auxiliary_in_channels": 48, "auxiliary_channels": 8, "pool_scales": [1, 2]}
    return tf.UperNetForSemanticSegmentation(tf.UperNetConfig(backbone_config=_swin(), **sizes, **_LABELS))


def _mobilevit() -> Any:
    sizes = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 64], "num_attention_heads": 2}
    config = tf.MobileViTConfig(image_size=64, **sizes, aspp_out_channels=16, **_LABELS)
    return tf.MobileViTForSemanticSegmentation(config)


def _mae() -> Any:
    return tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**_MLP, **_DECODER, decoder_intermediate_size=16))


def _cropped(cls: Any, edge: int = 64) -> Any:
    return cls(size={"shortest_edge": edge}, crop_size={"height": 64, "width": 64})


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "segformer": lambda: (_segformer(), tf.SegformerImageProcessor(**_SQUARE)),
    "dpt-depth": lambda: (
        tf.DPTForDepthEstimation(tf.DPTConfig(**_MLP, **_DPT, **_NECK)),
        tf.DPTImageProcessor(**_SQUARE),
    ),
    "dpt-segment": lambda: (
        tf.DPTForSemanticSegmentation(tf.DPTConfig(**_MLP, **_DPT, **_NECK, **_LABELS)),
        tf.DPTImageProcessor(**_SQUARE),
    ),
    "beit": lambda: (_beit(), tf.BeitImageProcessor(**_SQUARE, do_center_crop=False)),
    "depth-anything": lambda: (_depth_anything(), tf.DPTImageProcessor(**_SQUARE)),
    "upernet": lambda: (_upernet(), tf.SegformerImageProcessor(**_SQUARE)),
    "mobilevit": lambda: (_mobilevit(), _cropped(tf.MobileViTImageProcessor, 72)),
    "mask2former": lambda: (_mask2former(), tf.Mask2FormerImageProcessor(**_SQUARE)),
    "maskformer": lambda: (_maskformer(), tf.MaskFormerImageProcessor(**_SQUARE)),
    "mae": lambda: (_mae(), tf.ViTImageProcessor(**_SQUARE)),
    "mae-encoder": lambda: (tf.ViTMAEModel(tf.ViTMAEConfig(**_MLP)), tf.ViTImageProcessor(**_SQUARE)),
    "simmim": lambda: (
        tf.ViTForMaskedImageModeling(tf.ViTConfig(**_MLP, encoder_stride=8)),
        tf.ViTImageProcessor(**_SQUARE),
    ),
    "beit-masked": lambda: (
        tf.BeitForMaskedImageModeling(tf.BeitConfig(**_MLP)),
        tf.BeitImageProcessor(**_SQUARE, do_center_crop=False),
    ),
    "hiera": lambda: (
        tf.HieraForPreTraining(
            tf.HieraConfig(
                embed_dim=16,
                image_size=[64, 64],
                num_query_pool=1,
                depths=[1, 1, 1],
                num_heads=[1, 2, 4],
                decoder_hidden_size=16,
                decoder_depth=1,
                decoder_num_heads=2,
            )
        ),
        _cropped(tf.BitImageProcessor),
    ),
    "video": lambda: (
        tf.VideoMAEForPreTraining(tf.VideoMAEConfig(**_MLP, num_frames=2, **_DECODER, decoder_intermediate_size=16)),
        tf.ViTImageProcessor(**_SQUARE),
    ),
    "yolos": lambda: (
        tf.YolosForObjectDetection(
            tf.YolosConfig(**{**_MLP, "image_size": [64, 64]}, num_detection_tokens=5, **_LABELS)
        ),
        tf.ViTImageProcessor(**_SQUARE),
    ),
    "super-resolution": lambda: (
        tf.Swin2SRForImageSuperResolution(
            tf.Swin2SRConfig(embed_dim=16, depths=[1], num_heads=[2], image_size=64, window_size=4)
        ),
        tf.ViTImageProcessor(**_SQUARE),
    ),
    "backbone": lambda: (tf.Dinov2Backbone(tf.Dinov2Config(**_VIT)), _cropped(tf.BitImageProcessor)),
}
"""Model and image processor by a short name."""


def perturbed(model: Any, scale: float = 0.05) -> Any:
    """Add noise to every parameter, from a fixed seed, and return the model in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save(name: str, folder: Path) -> Any:
    """Save one of :data:`MODELS` with its image processor, and return the model."""
    torch.manual_seed(0)
    model, processor = MODELS[name]()
    perturbed(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def pixels(count: int, size: int = 64) -> torch.Tensor:
    """Return standard normal planes ``[count, 3, size, size]``, from a fixed seed."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))
