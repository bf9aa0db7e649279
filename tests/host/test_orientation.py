"""Photographs as phones store them, turned by EXIF or in 16 bits, get the answer of ``transformers.pipeline``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from transformers import AutoImageProcessor, pipeline

from tests.support.checkpoints import save_timm, save_vit
from tests.support.deep_images import png16
from vitexport.host.preprocess_parity import compare_with_library
from vitexport.host.sources import LoadedModel, load_model
from vitexport.inputs.decoded import DecodedImages
from vitexport.inputs.images import content_hashes, load_image
from vitexport.inputs.preprocess import preprocess
from vitexport.recipe.settings import ModelSettings
from vitexport.scoring import softmax

_ORIENTATIONS = range(1, 9)


def _scores(loaded: LoadedModel, path: Path) -> np.ndarray:
    planes = torch.from_numpy(preprocess(load_image(path), loaded.metadata.preprocess))
    with torch.no_grad():
        (logits,) = loaded.module(planes[None])
    return softmax(logits.numpy())[0]


def _pipeline(folder: Path) -> Any:
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return pipeline("image-classification", model=str(folder), image_processor=processor, device="cpu")


def _save_turned(image: Image.Image, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif, quality=95)
    return path


def test_every_orientation_gets_the_score_of_the_pipeline(tmp_path: Path, photo: Image.Image) -> None:
    folder = save_vit(tmp_path / "m", num_labels=4)
    loaded, library = load_model(ModelSettings(source=str(folder))), _pipeline(folder)
    found = []
    for orientation in _ORIENTATIONS:
        path = _save_turned(photo, tmp_path / f"{orientation}.jpg", orientation)
        scores = _scores(loaded, path)
        expected = {entry["label"]: entry["score"] for entry in library(str(path), top_k=None)}
        np.testing.assert_allclose(scores, [expected[f"LABEL_{index}"] for index in range(4)], atol=1e-4)
        found.append(scores)
    # Every one of them changes the answer by more than the tolerance, or the test would show nothing.
    differences = [np.abs(a - b).max() for i, a in enumerate(found) for b in found[:i]]
    assert min(differences) > 1e-3


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_the_librarys_own_reading_of_turned_and_deep_files_agrees(
    library: str, tmp_path: Path, photo: Image.Image
) -> None:
    source = str(save_vit(tmp_path / "m")) if library == "transformers" else f"timm:local-dir:{tmp_path / 'm'}"
    if library == "timm":
        save_timm(tmp_path / "m", 3)
    settings = ModelSettings(source=source)
    paths = [_save_turned(photo, tmp_path / f"{orientation}.jpg", orientation) for orientation in _ORIENTATIONS]
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * np.uint16(257)).save(tmp_path / "deep.png")
    found = compare_with_library(load_model(settings), settings, [*paths, tmp_path / "deep.png"])
    assert found["passed"] and found["finding"].startswith("equal on 9 images")
    assert "1 of more than 8 bits" in found["finding"]
    assert ("7 with an EXIF orientation" in found["finding"]) == (library == "timm")


def test_images_left_as_they_are_stored_would_be_found(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelSettings(source=str(save_vit(tmp_path / "m")))
    path = _save_turned(photo, tmp_path / "a.jpg", 6)
    loaded = load_model(settings)
    monkeypatch.setattr("vitexport.inputs.standard._upright", lambda image, name: image)
    assert compare_with_library(loaded, settings, [path])["passed"] is False


def test_verification_and_the_search_for_copies_see_images_upright(tmp_path: Path, photo: Image.Image) -> None:
    loaded = load_model(ModelSettings(source=str(save_vit(tmp_path / "m"))))
    spec = loaded.metadata.preprocess
    photo.save(tmp_path / "upright.png")
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    paths = [tmp_path / "upright.png", _save_turned(turned, tmp_path / "turned.png", 6)]
    first, second = content_hashes(paths)
    assert first == second
    with DecodedImages(paths, spec) as decoded:
        upright, restored = decoded.rows([0, 1])
    np.testing.assert_array_equal(upright, restored)


def test_real_weights_know_a_turned_photograph_and_one_of_16_bits(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "deit-tiny-hf"
    loaded, library = load_model(ModelSettings(source=str(folder))), _pipeline(folder)
    names = loaded.metadata.class_names
    for path in sorted((shared / "data" / "imagenet-1k-sample" / "dev").iterdir())[:4]:
        image = Image.open(path).convert("RGB")
        expected = _scores(loaded, path)
        turned = _save_turned(image.transpose(Image.Transpose.ROTATE_90), tmp_path / "turned.png", 6)
        np.testing.assert_array_equal(_scores(loaded, turned), expected)
        best = library(str(turned), top_k=1)[0]
        assert best["label"] == names[int(expected.argmax())]
        assert best["score"] == pytest.approx(float(expected.max()), abs=1e-4)
        deep = tmp_path / "deep.png"
        deep.write_bytes(png16(np.asarray(image).astype(np.uint16) * np.uint16(257)))
        np.testing.assert_array_equal(_scores(loaded, deep), expected)
        grey = np.asarray(image.convert("L"))
        Image.fromarray(grey).save(tmp_path / "grey.png")
        for kind in ("png", "tif"):
            Image.fromarray(grey.astype(np.uint16) * np.uint16(257)).save(tmp_path / f"deep.{kind}")
            np.testing.assert_array_equal(
                _scores(loaded, tmp_path / f"deep.{kind}"), _scores(loaded, tmp_path / "grey.png")
            )
