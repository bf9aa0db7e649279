"""Hugging Face ``preprocessor_config.json`` as a :class:`PreprocessSpec`."""

from __future__ import annotations

import json
from pathlib import Path

from vitexport.preprocess import PreprocessSpec, Resize

__all__ = ["resolve_preprocess"]

_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's integer code


def resolve_preprocess(folder: Path, image_size: tuple[int, int] | None) -> PreprocessSpec:
    config = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    size = image_size or (config["size"]["height"], config["size"]["width"])
    return PreprocessSpec(
        image_size=size,
        resize=Resize(size=size),
        interpolation=_RESAMPLE[config["resample"]],
        rescale=config["rescale_factor"],
        mean=config["image_mean"],
        std=config["image_std"],
    )
