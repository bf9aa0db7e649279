"""Channels, interpolation and other settings of a checkpoint that cannot be followed are refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, SwinConfig, UperNetConfig, ViTConfig, ViTForImageClassification, ViTImageProcessor

from tests.support.checkpoints import save_timm, save_vit
from vitexport.errors import ModelSourceError
from vitexport.host.sources import huggingface_preprocess, load_model, timm_preprocess
from vitexport.host.sources.channels import huggingface_channels
from vitexport.host.sources.live import wrap_module
from vitexport.inputs.preprocess import PreprocessSpec, Resize, preprocess
from vitexport.recipe.settings import ModelSettings

_HALF = [0.5, 0.5, 0.5]
_TIMM = {"input_size": [3, 32, 32], "mean": _HALF, "std": _HALF, "interpolation": "bicubic", "crop_pct": 0.9}
_PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}


def from_timm(channels: int | None = None, **settings: Any) -> PreprocessSpec:
    return timm_preprocess.resolve_preprocess({**_TIMM, **settings}, None, channels)


def from_processor(folder: Path, channels: int | None = None, **settings: Any) -> PreprocessSpec:
    (folder / "preprocessor_config.json").write_text(json.dumps({**_PROCESSOR, **settings}))
    return huggingface_preprocess.resolve_preprocess(folder, None, channels)


def test_a_transformers_model_and_a_processor_of_other_channels_are_refused_naming_both(tmp_path: Path) -> None:
    save_vit(tmp_path / "grey", num_channels=1)
    with pytest.raises(ModelSourceError, match=r"channels, 1 \(L\), found 3: 0.5, 0.5, 0.5") as caught:
        load_model(ModelSettings(source=str(tmp_path / "grey")))
    assert "one mean and std for each channel" in caught.value.hint
    save_vit(tmp_path / "colour", {"image_mean": [0.4], "image_std": [0.2]})
    with pytest.raises(ModelSourceError, match=r"channels, 3 \(RGB\), found 1: 0.4"):
        load_model(ModelSettings(source=str(tmp_path / "colour")))


def test_a_timm_model_and_a_mean_of_other_channels_are_refused_naming_both(tmp_path: Path) -> None:
    save_timm(tmp_path / "m", 1, mean=_HALF, std=_HALF)
    with pytest.raises(ModelSourceError, match=r"'mean' .* channels, 1 \(L\), found 3") as caught:
        load_model(ModelSettings(source=f"timm:local-dir:{tmp_path / 'm'}"))
    assert "config.json" in caught.value.hint and "average" in caught.value.hint


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_single_weight_file_of_other_channels_is_refused_with_the_form_that_takes_a_mean(
    kind: str, tmp_path: Path
) -> None:
    weights = timm.create_model("vit_tiny_patch16_224", num_classes=5, in_chans=1).state_dict()
    path = tmp_path / f"grey.{kind}"
    save_file(weights, path) if kind == "safetensors" else torch.save(weights, path)
    settings = ModelSettings(source=f"timm:vit_tiny_patch16_224@{path}", allow_pickle=True)
    with pytest.raises(ModelSourceError, match=r"'mean' .* channels, 1 \(L\), found 3") as caught:
        load_model(settings)
    assert "timm:local-dir:PATH" in caught.value.hint


@pytest.mark.parametrize("channels", [2, 5])
def test_a_number_of_channels_that_no_image_has_is_refused(channels: int, tmp_path: Path) -> None:
    values = [0.5] * channels
    for refused in (
        lambda: from_timm(channels, mean=values, std=values),
        lambda: from_processor(tmp_path, channels, image_mean=0.5, image_std=0.5),
        lambda: from_processor(tmp_path, image_mean=values, image_std=values),
    ):
        with pytest.raises(
            ModelSourceError, match=f"1 .L., 3 .RGB., 4 .RGBA. channels, found one that takes {channels}"
        ):
            refused()


def test_one_number_counts_for_every_channel_where_the_library_takes_it_so(tmp_path: Path) -> None:
    for channels in (1, 3, 4):
        assert from_processor(tmp_path, channels, image_mean=0.4, image_std=0.2).mean == (0.4,) * channels
        assert from_processor(tmp_path, channels, do_normalize=False).std == (1.0,) * channels
        assert from_timm(channels, mean=[0.4], std=0.2).std == (0.2,) * channels


def test_a_processor_that_makes_rgb_is_refused_for_a_model_of_other_channels(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="takes 1 channels, found one that converts images to RGB"):
        from_processor(tmp_path, 1, image_mean=[0.5], image_std=[0.5], do_convert_rgb=True)


def test_the_part_that_sees_images_says_how_many_channels() -> None:
    assert huggingface_channels(CLIPConfig(vision_config={"num_channels": 4})) == 4
    assert huggingface_channels(UperNetConfig(backbone_config=SwinConfig(num_channels=1))) == 1
    assert huggingface_channels(ViTConfig(num_channels=1)) == 1
    assert huggingface_channels(object()) is None


def test_a_live_module_and_a_preprocessing_of_other_channels_are_refused_naming_both() -> None:
    resize = Resize(size=(32, 32))
    grey = PreprocessSpec(image_size=(32, 32), resize=resize, mean=(0.5,), std=(0.5,))
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    for module, name in (
        (ViTForImageClassification(config), "ViTForImageClassification"),
        (timm.create_model("vit_tiny_patch16_224", **small), "VisionTransformer"),
    ):
        with pytest.raises(ModelSourceError, match=f"images of 3 channels for '{name}', found .* makes 1 .L."):
            wrap_module(module, grey)
    anyones = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.Flatten(), torch.nn.Linear(64, 3))
    with pytest.raises(ModelSourceError, match="32 x 32 pixels and 1 channels"):
        wrap_module(anyones, grey)


def test_a_live_module_takes_a_grey_processor_and_a_preprocessing_of_four_channels() -> None:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8, num_channels=1
    )
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4], image_std=[0.2])
    loaded = wrap_module(ViTForImageClassification(config), processor)
    assert loaded.metadata.model.inputs[0].shape == ("batch", 1, 32, 32)
    four = PreprocessSpec(image_size=(32, 32), resize=Resize(size=(32, 32)), mean=(0.5,) * 4, std=(0.5,) * 4)
    module = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 8, stride=8), torch.nn.Flatten(), torch.nn.Linear(64, 3))
    assert wrap_module(module, four).metadata.model.inputs[0].shape == ("batch", 4, 32, 32)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("random", "'bilinear' or 'bicubic'"), ("nearest-exact", "'nearest'"), ("Bicubic", "was meant"), (3, "was meant")],
)
def test_an_interpolation_that_timm_cannot_evaluate_with_is_refused(name: Any, advice: str) -> None:
    with pytest.raises(ModelSourceError, match=f"timm interpolation nearest, .* found {name!r}") as caught:
        from_timm(interpolation=name)
    assert advice in caught.value.hint
    with pytest.raises((KeyError, TypeError)):  # timm's own answer
        timm.data.create_transform(input_size=(3, 32, 32), interpolation=name)


def test_the_advice_for_nearest_exact_is_what_torchvision_does(photo: Image.Image) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    resized = transforms.resize(photo, [32, 48], InterpolationMode.NEAREST_EXACT)
    planes = (np.asarray(resized.crop((8, 0, 40, 32)), np.float32) / 255 - 0.5) / 0.5
    found = preprocess(photo, from_timm(interpolation="nearest", crop_pct=1.0))
    np.testing.assert_allclose(found, planes.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_mode": "border"},
        {"crop_mode": "Center"},
        {"crop_pct": "most"},
        {"crop_pct": -1},
        {"std": [0.0] * 3},
        {"mean": "half"},
        {"input_size": [3, 32]},
        {"input_size": 32},
    ],
    ids=str,
)
def test_what_else_a_timm_configuration_may_hold_is_refused_in_words(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelSourceError, match="timm"):
        from_timm(**settings)


@pytest.mark.parametrize("resample", [6, -1, "bicubic", 2.0, None])
def test_a_code_of_no_pillow_filter_is_refused_with_those_there_are(resample: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=f"found {resample!r}") as caught:
        from_processor(tmp_path, resample=resample)
    assert "2 for bilinear, 3 for bicubic" in caught.value.hint


@pytest.mark.parametrize(
    "settings",
    [
        {"rescale_factor": None},
        {"rescale_factor": "x"},
        {"do_center_crop": True},
        {"image_mean": "half"},
        {"image_std": [0, 0, 0]},
        {"size": -1},
    ],
    ids=str,
)
def test_what_else_a_processor_may_hold_is_refused_in_words(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError):
        from_processor(tmp_path, **settings)
