"""timm's ``pretrained_cfg`` as a :class:`PreprocessSpec`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from vitexport.errors import ModelSourceError
from vitexport.host.sources.channels import per_channel
from vitexport.inputs.preprocess import Interpolation, PreprocessSpec, Resize

__all__ = ["resolve_preprocess"]

_SET = "Set `interpolation` in the checkpoint's config.json to"
_INTERPOLATION_HINTS = {
    # timm.data.transforms: training draws one of the two per image.
    "random": f"{_SET} 'bilinear' or 'bicubic', between which training chooses at random.",
    # torchvision.transforms.functional: pil_modes_mapping
    "nearest-exact": f"{_SET} 'nearest', which is what torchvision makes of it for Pillow images.",
}


def resolve_preprocess(
    config: Mapping[str, Any], image_size: tuple[int, int] | None, channels: int | None = None
) -> PreprocessSpec:
    """Return what ``timm.data.create_transform(**resolve_model_data_config(model))`` does for evaluation.

    Args:
        config: The checkpoint's ``pretrained_cfg``.
        image_size: (height, width) in pixels that replaces the checkpoint's own; the crop fraction is kept.
        channels: Channels the model takes; None takes those of the configuration's ``input_size``.

    Raises:
        ModelSourceError: The configuration lacks mean or std, has them for another number of channels, or uses a crop
            mode or an interpolation that timm's evaluation does not have either.
    """
    for key in ("mean", "std", "input_size"):
        if not config.get(key):
            raise ModelSourceError(
                f"Expected '{key}' in the timm pretrained_cfg, found none.", "Add it to the checkpoint's config.json."
            )
    try:
        return _spec(config, image_size, channels)
    except (ValueError, TypeError) as error:  # pydantic's, or of a value of another type
        raise ModelSourceError(
            f"The timm pretrained_cfg cannot be followed: {error}", "Correct it in the checkpoint's config.json."
        ) from error


def _spec(config: Mapping[str, Any], image_size: tuple[int, int] | None, channels: int | None) -> PreprocessSpec:
    own_channels, own_height, own_width = config["input_size"]
    height, width = image_size or (own_height, own_width)
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
    mean, std = (_per_channel(config[key], channels or own_channels, setting=key) for key in ("mean", "std"))
    return PreprocessSpec(
        image_size=(height, width),
        resize=resize,
        interpolation=_interpolation(config.get("interpolation") or "bicubic"),
        crop=True,
        crop_rounding="round",
        mean=mean,
        std=std,
    )


def _per_channel(values: Any, channels: int, *, setting: str) -> tuple[float, ...]:
    """Return one value per channel; a list of one counts for all, as in timm's loaders."""
    single = isinstance(values, list | tuple) and len(values) == 1
    return per_channel(
        values[0] if single else values,
        channels,
        setting=setting,
        where="the timm pretrained_cfg",
        hint=f"Write the values the model was trained with as '{setting}' into the config.json of a timm directory "
        "(`timm:local-dir:PATH`); timm's own loaders take their average where the number does not fit.",
    )


def _interpolation(name: Any) -> Interpolation:
    """Return the filter of that name. timm's evaluation transform fails with any other (``str_to_interp_mode``)."""
    known: tuple[Interpolation, ...] = get_args(Interpolation)
    for filter_name in known:
        if name == filter_name:
            return filter_name
    raise ModelSourceError(
        f"Expected the timm interpolation {', '.join(known)}, found {name!r}, which timm's evaluation transform does "
        "not have either.",
        _INTERPOLATION_HINTS.get(str(name), f"{_SET} the one that was meant."),
    )
