"""Our preprocessing against the source libraries' own transforms, on photographs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import transformers
from PIL import Image

from vitexport.errors import ModelSourceError
from vitexport.host.sources import huggingface_preprocess, timm_preprocess
from vitexport.inputs.images import list_images, load_image
from vitexport.inputs.preprocess import PreprocessSpec, preprocess

_HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="session")
def photographs(shared: Path) -> list[Image.Image]:
    """Photographs of many sizes."""
    return [load_image(path) for path in list_images(shared / "data" / "imagenet-1k-sample" / "dev", limit=16)]


# Names as on the hub; the settings are those of the checkpoints named in the comments.
_PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTImageProcessor", {}),  # google/vit-base-patch16-224
    "deit": ("DeiTImageProcessor", {}),  # facebook/deit-base-distilled-patch16-224
    "beit": ("BeitImageProcessor", {}),  # microsoft/beit-base-patch16-224
    "clip": ("CLIPImageProcessor", {}),  # openai/clip-vit-base-patch32
    "clip-336": ("CLIPImageProcessor", {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}),
    "siglip": ("SiglipImageProcessor", {}),  # google/siglip2-base-patch16-224
    "dinov2": (  # facebook/dinov2-base
        "BitImageProcessor",
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
    ),
    "small crop of a large resize": (
        "DeiTImageProcessor",
        {"size": {"height": 301, "width": 277}, "crop_size": {"height": 200, "width": 180}, "resample": 2},
    ),
}


@pytest.mark.parametrize("name", _PROCESSORS)
def test_huggingface_transforms_in_pillow_are_reproduced(
    name: str, photographs: Sequence[Image.Image], tmp_path: Path
) -> None:
    kind, settings = _PROCESSORS[name]
    processor = getattr(transformers, f"{kind}Pil")(**settings)
    processor.save_pretrained(tmp_path)
    spec = huggingface_preprocess.resolve_preprocess(tmp_path, None)
    assert _largest_difference(photographs, spec, lambda image: processor(image, return_tensors="np")) <= 1e-6


# What the tensor resize of transformers' default backend changes, in units of the normalized input: the tests keep the
# numbers of docs/models.md true.
@pytest.mark.parametrize(
    ("kind", "mean_limit", "largest_limit"),
    [("ViTImageProcessor", 5e-4, 0.02), ("DINOv3ViTImageProcessor", 6e-3, 0.03), ("SiglipImageProcessor", 5e-4, 0.1)],
)
def test_huggingface_tensor_resize_differs_by_what_the_documentation_says(
    kind: str, mean_limit: float, largest_limit: float, photographs: Sequence[Image.Image], tmp_path: Path
) -> None:
    processor = getattr(transformers, kind)()
    processor.save_pretrained(tmp_path)
    spec = huggingface_preprocess.resolve_preprocess(tmp_path, None)
    differences = [
        np.abs(np.asarray(processor(image, return_tensors="np")["pixel_values"][0]) - preprocess(image, spec))
        for image in photographs
    ]
    assert float(np.mean([d.mean() for d in differences])) <= mean_limit
    assert max(float(d.max()) for d in differences) <= largest_limit


_TIMM = {
    "vit augreg": {
        "input_size": (3, 224, 224),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": _HALF,
        "std": _HALF,
    },
    "beit": {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bicubic", "mean": _HALF, "std": _HALF},
    "dinov2": {"input_size": (3, 518, 518), "crop_pct": 1.0, "interpolation": "bicubic", "mean": _HALF, "std": _HALF},
    "swin": {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bilinear", "mean": _HALF, "std": _HALF},
    "eva02": {
        "input_size": (3, 448, 448),
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bicubic",
        "mean": (0.4815, 0.4578, 0.4082),
        "std": (0.2686, 0.2613, 0.2758),
    },
    "non-square": {
        "input_size": (3, 160, 288),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": _HALF,
        "std": _HALF,
    },
    "odd": {"input_size": (3, 219, 219), "crop_pct": 0.83, "interpolation": "lanczos", "mean": _HALF, "std": _HALF},
}


@pytest.mark.parametrize("name", _TIMM)
def test_timm_transforms_are_reproduced(name: str, photographs: Sequence[Image.Image]) -> None:
    config = _TIMM[name]
    spec = timm_preprocess.resolve_preprocess(config, None)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
    assert _largest_difference(photographs, spec, lambda image: {"pixel_values": [transform(image).numpy()]}) <= 1e-6


def _largest_difference(images: Sequence[Image.Image], spec: PreprocessSpec, transform: Any) -> float:
    return max(
        float(np.abs(np.asarray(transform(image)["pixel_values"][0]) - preprocess(image, spec)).max())
        for image in images
    )


@pytest.mark.parametrize("config", [{"crop_mode": "border"}, {"mean": None}, {"input_size": None}])
def test_timm_configurations_that_cannot_be_said_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ModelSourceError):
        timm_preprocess.resolve_preprocess({**_TIMM["beit"], **config}, None)


def test_processors_with_steps_of_their_own_are_refused(tmp_path: Path) -> None:
    transformers.Siglip2ImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ModelSourceError, match="not known to be resize"):
        huggingface_preprocess.resolve_preprocess(tmp_path, None)


def test_old_configuration_files_get_the_defaults_of_their_class(tmp_path: Path) -> None:
    old = {"do_normalize": True, "do_resize": True, "image_mean": _HALF, "image_std": _HALF, "resample": 2, "size": 224}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**old, "image_processor_type": "ViTImageProcessor"}))
    spec = huggingface_preprocess.resolve_preprocess(tmp_path, None)
    assert (spec.image_size, spec.interpolation, spec.rescale) == ((224, 224), "bilinear", pytest.approx(1 / 255))


def test_another_image_size_keeps_the_proportion_of_resize_and_crop(tmp_path: Path) -> None:
    kind, settings = _PROCESSORS["dinov2"]
    getattr(transformers, f"{kind}Pil")(**settings).save_pretrained(tmp_path)
    spec = huggingface_preprocess.resolve_preprocess(tmp_path, (448, 448))
    assert spec.resize is not None
    assert (spec.image_size, spec.resize.size) == ((448, 448), (512, 512))
    wide = timm_preprocess.resolve_preprocess(_TIMM["beit"], (180, 360))
    assert wide.resize is not None and (wide.resize.mode, wide.resize.size) == ("cover", (200, 400))
