"""Hugging Face ``preprocessor_config.json`` as a :class:`PreprocessSpec`.

The checkpoint's image processor is built from the file, so that the class supplies what old files leave out; then its
attributes are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from pydantic import ValidationError

from vitexport.errors import ModelSourceError
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


def resolve_preprocess(folder: Path, image_size: tuple[int, int] | None) -> PreprocessSpec:
    """Return what the checkpoint's image processor does with one RGB image, in its Pillow form.

    Args:
        folder: Checkpoint directory.
        image_size: (height, width) in pixels that replaces the checkpoint's own; resize and crop keep their proportion.

    Raises:
        ModelSourceError: There is no preprocessor configuration, or it does what :class:`PreprocessSpec` cannot say.
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
        return _spec(processor, image_size, squash)
    except ValidationError as error:
        raise ModelSourceError(
            f"The preprocessor_config.json of '{folder.name}' does not bring every image to one size: {error}",
            "Set `size` (and `crop_size`) to the model's image size.",
        ) from error


def _spec(processor: Any, image_size: tuple[int, int] | None, squash: tuple[int, int] | None) -> PreprocessSpec:
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
    normalize = bool(getattr(processor, "do_normalize", False))
    return PreprocessSpec(
        image_size=target,
        resize=resize,
        interpolation=_RESAMPLE[int(processor.resample)],
        crop=crop,
        rescale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=_triple(processor.image_mean) if normalize else (0.0, 0.0, 0.0),
        std=_triple(processor.image_std) if normalize else (1.0, 1.0, 1.0),
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


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (values,) * 3 if isinstance(values, float | int) else values
    return float(red), float(green), float(blue)
