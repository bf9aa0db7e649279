"""Our preprocessing against the source library's own transform, from the image files on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from vitexport.files import atomic_path
from vitexport.host.sources import LoadedModel
from vitexport.inputs.images import load_image
from vitexport.inputs.preprocess_diff import compare_pixels
from vitexport.inputs.standard import CHANNEL_MODES, in_channels, is_eight_bit
from vitexport.recipe.settings import ModelSettings

__all__ = ["compare_with_library", "copy_samples"]

Transform = Callable[[Image.Image], NDArray[np.float32]]

_SAMPLE_BYTES = 2_000_000


def compare_with_library(loaded: LoadedModel, settings: ModelSettings, paths: Sequence[Path]) -> dict[str, Any]:
    """Run both on image files, each with its own reading of them.

    Two things the libraries read otherwise than they should are said in the finding, and left out of the comparison:
    both clip 16 bits to 8, and timm's loader does not turn an image upright. transformers does.

    Args:
        loaded: The model and our preprocessing.
        settings: Where it came from.
        paths: Image files.

    Returns:
        JSON-ready: ``library``, ``passed`` (None when there is nothing to compare with), ``finding`` and the numbers of
        :class:`~vitexport.inputs.preprocess_diff.PixelParity`.
    """
    turns = loaded.metadata.model.source != "timm"
    name, transform = _huggingface(loaded, settings) if turns else _timm(loaded)
    if transform is None:
        return {"library": name, "passed": None, "finding": "the checkpoint's own image processor could not be opened"}
    spec = loaded.metadata.preprocess
    images = [load_image(path) for path in paths]
    headers = [_header(path) for path in paths]
    theirs = [
        _read(path, spec.channels, with_transformers=turns) if header.eight_bit else in_channels(image, spec.channels)
        for path, image, header in zip(paths, images, headers, strict=True)
    ]
    parity = compare_pixels(images, [transform(image) for image in theirs], spec)
    finding = parity.finding
    if clipped := sum(not header.eight_bit for header in headers):
        finding += f"; {clipped} of more than 8 bits, which the library clips, were given to it in 8"
    if turned := 0 if turns else sum(header.turned for header in headers):
        finding += f"; {turned} with an EXIF orientation, which timm's loader ignores, were given to it upright"
    return {"library": name, "passed": parity.passed, **asdict(parity), "finding": finding}


@dataclass(frozen=True)
class _Header:
    eight_bit: bool
    turned: bool


def _header(path: Path) -> _Header:
    with Image.open(path) as image:
        return _Header(is_eight_bit(image), image.getexif().get(ExifTags.Base.Orientation, 1) != 1)


def _read(path: Path, channels: int, *, with_transformers: bool) -> Image.Image:
    """Return an image as ``transformers.pipeline`` reads it, or, upright, as timm's loader with that image mode."""
    if with_transformers and channels == 3:  # it knows no other number
        from transformers.image_utils import load_image as load_rgb

        return load_rgb(str(path))
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert(CHANNEL_MODES[channels])


def _timm(loaded: LoadedModel) -> tuple[str, Transform | None]:
    import timm

    data: Any = timm.data
    spec = loaded.metadata.preprocess
    config = data.resolve_model_data_config(loaded.module.model)
    config["input_size"] = (spec.channels, *spec.image_size)
    evaluate = data.create_transform(**config, is_training=False)
    return f"timm {timm.__version__}", lambda image: np.asarray(evaluate(image).numpy(), dtype=np.float32)


def _huggingface(loaded: LoadedModel, settings: ModelSettings) -> tuple[str, Transform | None]:
    import transformers

    name = f"transformers {transformers.__version__}"
    processors: Any = transformers.AutoImageProcessor
    try:
        processor = processors.from_pretrained(
            settings.source, revision=settings.revision, backend="pil", trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError):
        return name, None
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else processor.size
    own = dict(size or {})
    if getattr(processor, "keep_aspect_ratio", False) or own.get("longest_edge"):
        return f"{name} (gives every image a size of its own, where the recipe squashes all to one)", None
    if "height" in own and (int(own["height"]), int(own["width"])) != loaded.metadata.preprocess.image_size:
        return f"{name} (made for another image size than the recipe asks for)", None

    def transform(image: Image.Image) -> NDArray[np.float32]:
        return np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], dtype=np.float32)

    return f"{name} {type(processor).__name__}", transform


def copy_samples(paths: Sequence[Path], folder: Path) -> list[str]:
    """Copy original image files, byte for byte, as far as they stay below 2 MB together.

    Returns:
        The names of the copies, in order; fewer than ``paths`` where the limit was reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copied: list[str] = []
    total = 0
    for index, path in enumerate(paths):
        total += path.stat().st_size
        if total > _SAMPLE_BYTES:
            break
        target = folder / f"{index:02d}{path.suffix.lower()}"
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
        copied.append(target.name)
    return copied
