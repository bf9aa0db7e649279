"""Our preprocessing against the source library's own transform, from the image files on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitexport.files import atomic_path
from vitexport.host.sources import LoadedModel
from vitexport.inputs.images import load_image
from vitexport.inputs.preprocess_diff import compare_pixels
from vitexport.recipe.settings import ModelSettings

__all__ = ["compare_with_library", "copy_samples"]

Transform = Callable[[Image.Image], NDArray[np.float32]]

_SAMPLE_BYTES = 2_000_000


def compare_with_library(loaded: LoadedModel, settings: ModelSettings, paths: Sequence[Path]) -> dict[str, Any]:
    """Run both on image files.

    Args:
        loaded: The model and our preprocessing.
        settings: Where it came from.
        paths: Image files.

    Returns:
        JSON-ready: ``library``, ``passed`` (None when there is nothing to compare with), ``finding`` and the numbers of
        :class:`~vitexport.inputs.preprocess_diff.PixelParity`.
    """
    name, transform = _timm(loaded) if loaded.metadata.model.source == "timm" else _huggingface(loaded, settings)
    if transform is None:
        return {"library": name, "passed": None, "finding": "the checkpoint's own image processor could not be opened"}
    images = [load_image(path) for path in paths]
    parity = compare_pixels(images, [transform(image) for image in images], loaded.metadata.preprocess)
    return {"library": name, "passed": parity.passed, **asdict(parity)}


def _timm(loaded: LoadedModel) -> tuple[str, Transform | None]:
    import timm

    data: Any = timm.data
    config = data.resolve_model_data_config(loaded.module.model)
    config["input_size"] = (3, *loaded.metadata.preprocess.image_size)
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
