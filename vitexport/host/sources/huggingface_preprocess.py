"""Hugging Face ``preprocessor_config.json`` as a :class:`PreprocessSpec`.

The checkpoint's image processor is built from the file, so that the class supplies what old files leave out; then its
attributes are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from vitexport.errors import ModelSourceError
from vitexport.host.sources.channels import per_channel
from vitexport.host.sources.dense_preprocess import DENSE, fixed_size
from vitexport.inputs.preprocess import Interpolation, PreprocessSpec, Resize

__all__ = ["TENSOR_RESIZE", "resolve_preprocess"]

_AUTO: Any = transformers.AutoImageProcessor  # its methods carry no types

_RESAMPLE: tuple[Interpolation, ...] = (
    "nearest",
    "lanczos",
    "bilinear",
    "bicubic",
    "box",
    "hamming",
)  # by Pillow's integer code

_NORMALIZATION_HINT = "Save the image processor the model was trained with: one mean and std for each channel."

# Processors whose steps are those of PreprocessSpec. Others may crop, pad or tile in their own way.
_KNOWN = frozenset(
    {
        *("ViTImageProcessor", "DeiTImageProcessor", "BeitImageProcessor", "CLIPImageProcessor"),
        *("SiglipImageProcessor", "BitImageProcessor", "DINOv3ViTImageProcessor", "ViTHybridImageProcessor"),
        *DENSE,
    }
)
TENSOR_RESIZE = frozenset({"DINOv3ViTImageProcessor"})
"""Processors that exist only with a resize of tensors; ours resizes with Pillow (docs/models.md has the difference)."""


def resolve_preprocess(folder: Path, image_size: tuple[int, int] | None, channels: int | None = None) -> PreprocessSpec:
    """Return what the checkpoint's image processor does with one image of the model's channels, in its Pillow form.

    Args:
        folder: Checkpoint directory.
        image_size: (height, width) in pixels that replaces the checkpoint's own; resize and crop keep their proportion.
        channels: Channels the model takes; None takes as many as the processor has means.

    Raises:
        ModelSourceError: There is no preprocessor configuration, it is for another number of channels, or it
            does what :class:`PreprocessSpec` cannot say.
    """
    if not (folder / "preprocessor_config.json").is_file():
        raise ModelSourceError(
            f"Expected a preprocessor_config.json in '{folder}', found none.",
            "Save the image processor the model was trained with there; its mean and std cannot be guessed.",
        )
    try:
        processor: Any = _AUTO.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelSourceError(
            f"transformers cannot read the preprocessor_config.json of '{folder.name}': {error}",
            "Correct the file, or save the image processor again.",
        ) from error
    kind = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    if kind not in _KNOWN:
        raise ModelSourceError(
            f"Expected an image processor of {', '.join(sorted(_KNOWN))}, found {kind}.",
            "Its steps are not known to be resize, centre crop, rescale and normalize; save one that is.",
        )
    squash = fixed_size(processor, kind, image_size) if kind in DENSE else None
    try:
        return _spec(processor, image_size, channels, squash)
    except (ValueError, TypeError) as error:  # pydantic's, or of a value of another type
        raise ModelSourceError(
            f"The preprocessor_config.json of '{folder.name}' cannot be followed: {error}",
            "Correct the file; `size` (and `crop_size`) must bring every image to the model's image size.",
        ) from error


def _spec(
    processor: Any, image_size: tuple[int, int] | None, channels: int | None, squash: tuple[int, int] | None
) -> PreprocessSpec:
    resize, target = _resize(processor) if squash is None else (Resize(mode="squash", size=squash), squash)
    crop = bool(getattr(processor, "do_center_crop", False))
    if crop:
        target = (int(processor.crop_size["height"]), int(processor.crop_size["width"]))
    if image_size is not None and image_size != target:
        if resize is not None:
            scaled = tuple(
                round(edge * new / old) for edge, new, old in zip(resize.size, image_size, target, strict=True)
            )
            resize = Resize(mode=resize.mode, size=(scaled[0], scaled[1]))
            if resize.mode != "squash":
                longest = max(scaled)
                resize = Resize(mode=resize.mode, size=(longest, longest))
        target = image_size
    mean, std = _normalization(processor, channels)
    return PreprocessSpec(
        image_size=target,
        resize=resize,
        interpolation=_interpolation(processor),
        crop=crop,
        rescale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=mean,
        std=std,
        channel_order="bgr" if getattr(processor, "do_flip_channel_order", False) else "rgb",
    )


def _resize(processor: Any) -> tuple[Resize | None, tuple[int, int]]:
    """Return the resize and the size it gives."""
    size = processor.size
    if not processor.do_resize:
        crop = processor.crop_size
        return None, (int(crop["height"]), int(crop["width"])) if crop else (1, 1)
    if getattr(size, "shortest_edge", None) and not getattr(size, "longest_edge", None):
        edge = int(size["shortest_edge"])
        return Resize(mode="shortest_edge", size=(edge, edge)), (edge, edge)
    if getattr(size, "height", None) and getattr(size, "width", None):
        squash = (int(size["height"]), int(size["width"]))
        return Resize(mode="squash", size=squash), squash
    raise ModelSourceError(
        f"Expected a resize to height and width or to the shortest edge, found {dict(size)}.",
        "Set `size` in preprocessor_config.json to one of those.",
    )


def _interpolation(processor: Any) -> Interpolation:
    """Return the filter of Pillow's code in ``resample``; any where nothing is resized."""
    code = processor.resample
    if not processor.do_resize and code is None:
        return "bicubic"
    if isinstance(code, int) and 0 <= code < len(_RESAMPLE):
        return _RESAMPLE[code]
    raise ModelSourceError(
        f"Expected the code of a Pillow filter as 'resample' of the image processor, found {code!r}.",
        "Write " + ", ".join(f"{number} for {name}" for number, name in enumerate(_RESAMPLE)) + ".",
    )


def _normalization(processor: Any, channels: int | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for each of the model's channels."""
    given: dict[str, Any] = {"image_mean": 0.0, "image_std": 1.0}
    if getattr(processor, "do_normalize", False):
        given = {setting: getattr(processor, setting) for setting in given}
    means = given["image_mean"]
    channels = channels or (len(means) if isinstance(means, list | tuple) else 3)
    if channels != 3 and getattr(processor, "do_convert_rgb", False):
        raise ModelSourceError(
            f"Expected an image processor for a model that takes {channels} channels, found one that converts "
            "images to RGB (do_convert_rgb).",
            "Save the image processor the model was trained with, or set do_convert_rgb to false in it.",
        )
    mean, std = (
        per_channel(values, channels, setting=setting, where="the image processor", hint=_NORMALIZATION_HINT)
        for setting, values in given.items()
    )
    return mean, std
