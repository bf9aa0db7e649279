"""timm's ``pretrained_cfg`` as a :class:`PreprocessSpec`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vitexport.errors import ModelSourceError
from vitexport.inputs.preprocess import PreprocessSpec, Resize

__all__ = ["resolve_preprocess"]


def resolve_preprocess(config: Mapping[str, Any], image_size: tuple[int, int] | None) -> PreprocessSpec:
    """Return what ``timm.data.create_transform(**resolve_model_data_config(model))`` does for evaluation.

    Args:
        config: The checkpoint's ``pretrained_cfg``.
        image_size: (height, width) in pixels that replaces the checkpoint's own; the crop fraction is kept.

    Raises:
        ModelSourceError: The configuration lacks mean or std, or uses a crop mode that is not supported.
    """
    for key in ("mean", "std", "input_size"):
        if not config.get(key):
            raise ModelSourceError(
                f"Expected '{key}' in the timm pretrained_cfg, found none.", "Add it to the checkpoint's config.json."
            )
    height, width = image_size or tuple(config["input_size"][1:])
    fraction = float(config.get("crop_pct") or 0.875)
    scaled = (math.floor(height / fraction), math.floor(width / fraction))
    mode = config.get("crop_mode") or "center"
    if mode == "squash":
        resize = Resize(mode="squash", size=scaled)
    elif mode == "center":
        resize = Resize(mode="shortest_edge" if scaled[0] == scaled[1] else "cover", size=scaled)
    else:
        raise ModelSourceError(
            f"Expected the timm crop mode 'center' or 'squash', found '{mode}'.",
            "Set `crop_mode` in the checkpoint's config.json to the one that was meant.",
        )
    return PreprocessSpec(
        image_size=(height, width),
        resize=resize,
        interpolation=config.get("interpolation") or "bicubic",
        crop=True,
        crop_rounding="round",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
