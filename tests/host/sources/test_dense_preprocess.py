"""Image processors of dense models against the library's own, and those that give every image a size of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from vitexport.errors import ModelSourceError
from vitexport.host.sources.huggingface_preprocess import resolve_preprocess
from vitexport.inputs.preprocess import preprocess

_SIZE = {"size": {"height": 48, "width": 64}}
_ODD = {"height": 50, "width": 65}
_FIXED: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "segformer": ("SegformerImageProcessor", {}, (512, 512)),
    "dpt": ("DPTImageProcessor", {}, (384, 384)),
    "dpt in multiples": (
        "DPTImageProcessor",
        {"size": {"height": 50, "width": 65}, "ensure_multiple_of": 14},
        (56, 70),
    ),
    "dpt with idle padding": (
        "DPTImageProcessor",
        {**_SIZE, "do_pad": True, "size_divisor": 16},
        (48, 64),
    ),
    "mobilevit": ("MobileViTImageProcessor", {}, (256, 256)),
    "maskformer": ("MaskFormerImageProcessor", {"size": {"height": 50, "width": 70}}, (64, 96)),
    "mask2former": ("Mask2FormerImageProcessor", {**_SIZE, "size_divisor": 0}, (48, 64)),
    "beit of ade20k": ("BeitImageProcessor", {"size": {"height": 64, "width": 64}, "do_center_crop": False}, (64, 64)),
}


@pytest.mark.parametrize("name", _FIXED)
def test_a_fixed_size_is_reproduced(name: str, pictures: Sequence[Image.Image], tmp_path: Path) -> None:
    kind, settings, size = _FIXED[name]
    processor = getattr(transformers, f"{kind}Pil")(**settings)
    processor.save_pretrained(tmp_path)
    spec = resolve_preprocess(tmp_path, None)
    assert spec.image_size == size
    for image in pictures:
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
        np.testing.assert_allclose(preprocess(image, spec), expected, rtol=0, atol=1e-6)


_VARYING = {
    "depth anything": ("DPTImageProcessor", {"keep_aspect_ratio": True, "ensure_multiple_of": 14, **_SIZE}, (56, 56)),
    "mask2former": ("Mask2FormerImageProcessor", {}, (64, 64)),
    "maskformer": ("MaskFormerImageProcessor", {}, (64, 64)),
}


@pytest.mark.parametrize("name", _VARYING)
def test_a_size_of_its_own_for_every_image_is_refused_unless_one_is_named(name: str, tmp_path: Path) -> None:
    kind, settings, asked = _VARYING[name]
    getattr(transformers, kind)(**settings).save_pretrained(tmp_path)
    with pytest.raises(ModelSourceError, match=f"this {kind} keeps the aspect ratio") as caught:
        resolve_preprocess(tmp_path, None)
    assert "--image-size H W" in caught.value.hint
    spec = resolve_preprocess(tmp_path, asked)
    assert spec.image_size == asked and spec.resize is not None and spec.resize.mode == "squash"


def test_square_images_are_squashed_as_the_library_does(pictures: Sequence[Image.Image], tmp_path: Path) -> None:
    settings = {"keep_aspect_ratio": True, "ensure_multiple_of": 14, "size": {"height": 70, "width": 70}}
    processor = transformers.DPTImageProcessorPil(**settings)
    processor.save_pretrained(tmp_path)
    spec = resolve_preprocess(tmp_path, (70, 70))
    for image in (picture.resize((97, 97)) for picture in pictures):
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
        np.testing.assert_allclose(preprocess(image, spec), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "asked", "message"),
    [
        ("DPTImageProcessor", {"ensure_multiple_of": 14}, (64, 64), r"found 64 x 64, which it makes 70 x 70"),
        ("Mask2FormerImageProcessor", {}, (65, 64), r"found 65 x 64, which it makes 96 x 64"),
        ("DPTImageProcessor", {"do_pad": True, "size_divisor": 20}, (64, 64), "pads 64 pixels to a multiple of 20"),
    ],
)
def test_a_size_that_the_processor_would_change_is_refused(
    kind: str, settings: dict[str, Any], asked: tuple[int, int], message: str, tmp_path: Path
) -> None:
    getattr(transformers, kind)(**settings).save_pretrained(tmp_path)
    with pytest.raises(ModelSourceError, match=message):
        resolve_preprocess(tmp_path, asked)


@pytest.mark.parametrize("kind", ["ZoeDepthImageProcessor", "GLPNImageProcessor", "EomtImageProcessor"])
def test_processors_that_pad_or_tile_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    getattr(transformers, kind)().save_pretrained(tmp_path)
    with pytest.raises(ModelSourceError, match=f"found {kind}"):
        resolve_preprocess(tmp_path, (64, 64))
