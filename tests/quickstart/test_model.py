"""The quickstart's model reads digits it never saw, is small, and comes out of ``train.py`` the same every time."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import AutoImageProcessor

from tests.support.paths import ROOT
from vitexport.host.sources import LoadedModel, load_model
from vitexport.inputs.images import list_images, load_image
from vitexport.inputs.labels.find import find_labels
from vitexport.inputs.labels.targets import class_targets
from vitexport.inputs.preprocess import preprocess
from vitexport.recipe.settings import ModelSettings
from vitexport.verification.accuracy import accuracy

HOLDOUT = ROOT / "calib" / "holdout"


@pytest.fixture(scope="module")
def weights(quickstart: Path) -> dict[str, NDArray[np.float32]]:
    return dict(load_file(quickstart / "model" / "model.safetensors"))


@pytest.fixture(scope="module")
def loaded(quickstart: Path) -> LoadedModel:
    return load_model(ModelSettings(source=str(quickstart / "model")))


def test_model_directory_is_small_and_float32(quickstart: Path, weights: dict[str, NDArray[np.float32]]) -> None:
    assert (quickstart / "model" / "model.safetensors").stat().st_size <= 2_000_000
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}


def test_every_trained_tensor_has_values_that_an_exporter_could_lose(
    weights: dict[str, NDArray[np.float32]],
) -> None:
    """A bias of zeros or a scale of ones would hide an export that drops it."""
    for name, array in weights.items():
        neutral = 1.0 if re.search(r"layernorm.*weight", name, re.IGNORECASE) else 0.0
        assert np.abs(array - neutral).max() > 1e-2, name
        assert array.std() > 1e-3, name


def test_top1_on_the_holdout_is_at_least_97_percent(loaded: LoadedModel) -> None:
    paths = list_images(HOLDOUT)
    labels = find_labels(HOLDOUT, paths, loaded.metadata.classes)
    assert labels is not None
    targets = class_targets(labels.targets)
    assert targets is not None
    planes = np.stack([preprocess(load_image(path), loaded.metadata.preprocess) for path in paths])
    with torch.inference_mode():
        (logits,) = loaded.module(torch.from_numpy(planes))
    result = accuracy(logits.numpy(), targets)
    assert result.images == 360
    assert result.top1 >= 0.97


def test_labels_of_the_model_are_those_of_the_manifest(loaded: LoadedModel, manifest: dict[str, Any]) -> None:
    assert list(loaded.metadata.class_names) == manifest["labels"] == list("0123456789")


def test_preprocessing_of_the_directory_is_the_one_trained_with(
    loaded: LoadedModel, train_script: ModuleType, digits_script: ModuleType
) -> None:
    assert loaded.metadata.preprocess == train_script.preprocessing(digits_script.load_splits().training)


def test_transformers_processor_gives_the_same_planes_for_a_grey_image(quickstart: Path, loaded: LoadedModel) -> None:
    """Users of the directory outside this project get what was trained, also from a one-channel PNG."""
    automatic: Any = AutoImageProcessor
    processor = automatic.from_pretrained(quickstart / "model", backend="pil")
    image = load_image(list_images(HOLDOUT)[0])
    theirs = processor(image.convert("L"), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(preprocess(image, loaded.metadata.preprocess), theirs, rtol=0, atol=1e-6)


def test_training_depends_on_the_seed_alone_and_writes_what_it_trained(
    train_script: ModuleType, digits_script: ModuleType, tmp_path: Path
) -> None:
    digits = digits_script.load_splits().training[:16]
    spec = train_script.preprocessing(digits)

    def trained(seed: int) -> Any:
        torch.manual_seed(seed)
        model = train_script.build_model()
        train_script.train(model, digits, spec, epochs=2, seed=seed)
        return model

    first, again, other = trained(0), trained(0), trained(1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert not torch.equal(tensor, other.state_dict()[name]), name

    train_script.write_model(first, spec, tmp_path / "model")
    written = load_model(ModelSettings(source=str(tmp_path / "model")))
    assert written.metadata.preprocess == spec
    planes = torch.from_numpy(np.stack([preprocess(digits_script.render(digit), spec) for digit in digits]))
    with torch.inference_mode():
        assert torch.equal(written.module(planes)[0], first(pixel_values=planes).logits)


def test_augmentation_moves_a_digit_but_keeps_it_whole(train_script: ModuleType, digits_script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for digit in digits_script.load_splits().training[:50]:
        image = digits_script.render(digit)
        before, after = np.asarray(image, np.float64), np.asarray(train_script.augment(image, rng), np.float64)
        assert after.shape == before.shape
        correlation = np.corrcoef(before.ravel(), after.ravel())[0, 1]
        assert 0.3 < correlation < 0.999
        # Ink changes by scale squared times contrast, plus half of the noise's spread; a cut stroke would lose more.
        assert 0.5 < after.sum() / before.sum() < 1.6
