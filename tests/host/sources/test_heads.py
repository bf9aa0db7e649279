"""Every head is exported as its class returns it, or refused by name; encoders of masked models see the whole image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    PerceiverConfig,
    PerceiverForImageClassificationLearned,
    ViTImageProcessor,
)

import vitexport as vx
from tests.support.dense_models import CLASSES, MODELS, perturbed, pixels, save
from vitexport.errors import ModelSourceError
from vitexport.host.export import export_onnx
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources import LoadedModel, load_model
from vitexport.host.sources.heads import head_of
from vitexport.host.sources.live import wrap_module
from vitexport.host.sources.unmasked import show_every_patch
from vitexport.recipe.settings import ExportSettings, ModelSettings, SimplifySettings
from vitexport.runtimes import open_runtime


def load(folder: Path, **settings: object) -> LoadedModel:
    return load_model(ModelSettings(source=str(folder), **settings))


@pytest.mark.parametrize(
    ("name", "task", "outputs"),
    [
        ("segformer", "segment", ["logits: float32[batch, 5, 16, 16]"]),
        ("dpt-depth", "depth", ["predicted_depth: float32[batch, 128, 128]"]),
        ("dpt-segment", "segment", ["logits: float32[batch, 5, 128, 128]"]),
        ("beit", "segment", ["logits: float32[batch, 5, 32, 32]"]),
        ("depth-anything", "depth", ["predicted_depth: float32[batch, 64, 64]"]),
        ("upernet", "segment", ["logits: float32[batch, 5, 64, 64]"]),
        ("mobilevit", "segment", ["logits: float32[batch, 5, 2, 2]"]),
        (
            "mask2former",
            "segment",
            ["class_queries_logits: float32[batch, 6, 6]", "masks_queries_logits: float32[batch, 6, 16, 16]"],
        ),
        (
            "maskformer",
            "segment",
            ["class_queries_logits: float32[batch, 6, 6]", "masks_queries_logits: float32[batch, 6, 16, 16]"],
        ),
    ],
)
def test_a_dense_head_answers_from_its_file_as_its_class_does(
    name: str, task: str, outputs: list[str], tmp_path: Path
) -> None:
    model = save(name, tmp_path / name)
    loaded = load(tmp_path / name)
    assert (loaded.metadata.model.task, [spec.describe() for spec in loaded.metadata.model.outputs]) == (task, outputs)
    assert loaded.metadata.class_names == (tuple(CLASSES.values()) if task == "segment" else ())
    export_onnx(loaded, ExportSettings(), tmp_path / "m.onnx")
    simplify_onnx(tmp_path / "m.onnx", SimplifySettings(), tmp_path / "s.onnx")
    with open_runtime(tmp_path / "s.onnx") as runtime, torch.no_grad():
        for count in (1, 3):
            expected = model(pixels(count))
            found = runtime.run({"pixel_values": pixels(count).numpy()})
            for output in found:
                wanted = expected[output].numpy()
                assert np.ptp(wanted) > 0, "a constant would hide every error"
                np.testing.assert_allclose(found[output], wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize(
    ("name", "architecture", "remedy"),
    [
        ("mae", "ViTMAEForPreTraining is for pretraining", "its encoder, which is then shown the whole image"),
        ("simmim", "ViTForMaskedImageModeling is for pretraining", "--task features"),
        ("beit-masked", "BeitForMaskedImageModeling is for pretraining", "--task features"),
        ("hiera", "HieraForPreTraining is for pretraining", "--task features"),
        ("yolos", "found YolosForObjectDetection, whose outputs are those of another task", "--task features"),
        ("super-resolution", "found Swin2SRForImageSuperResolution", "--task features"),
        ("backbone", "found Dinov2Backbone", "--task features"),
        ("video", "a videomae takes several frames of a video", "maps images to tensors"),
    ],
)
def test_a_head_of_no_task_is_refused_by_name_and_never_dropped(
    name: str, architecture: str, remedy: str, tmp_path: Path
) -> None:
    save(name, tmp_path / name)
    with pytest.raises(ModelSourceError, match=architecture) as caught:
        load(tmp_path / name)
    assert remedy in caught.value.hint


@pytest.mark.parametrize("name", ["segformer", "dpt-depth", "simmim", "beit-masked", "yolos", "hiera"])
def test_an_encoder_that_is_asked_for_is_that_of_the_library_and_said(name: str, tmp_path: Path) -> None:
    import transformers

    saved = save(name, tmp_path / name)
    loaded = load(tmp_path / name, task="features")
    assert loaded.metadata.model.task == "features" and loaded.metadata.class_names == ()
    assert loaded.notes == (f"Of {type(saved).__name__}, the encoder alone is exported, as asked.",)
    encoder = transformers.AutoModel.from_pretrained(tmp_path / name).eval()
    with torch.no_grad():
        expected = encoder(pixels(2)).last_hidden_state
        assert torch.equal(loaded.module.named(pixels(2))["last_hidden_state"], expected)


@pytest.mark.parametrize("name", ["mae", "mae-encoder"])
def test_a_masked_autoencoder_gives_every_token_in_order(name: str, tmp_path: Path) -> None:
    import transformers

    save(name, tmp_path / name)
    library = transformers.ViTMAEModel.from_pretrained(tmp_path / name, mask_ratio=0.0).eval()
    with torch.no_grad():
        expected = library(pixels(3), noise=torch.arange(64.0).expand(3, -1)).last_hidden_state
    loaded = load(tmp_path / name, task="features")
    assert any("nothing is masked" in note for note in loaded.notes)
    assert loaded.metadata.model.outputs[0].describe() == "last_hidden_state: float32[batch, 65, 32]"
    result = vx.export(tmp_path / name, tmp_path / "m.onnx", task="features")
    assert "nothing is masked" in result.details["note"] and result.details["max_rel_difference"] < 1e-5
    with open_runtime(result.path) as runtime:
        found = runtime.run({"pixel_values": pixels(3).numpy()})["last_hidden_state"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_live_masked_autoencoder_is_unmasked_too(tmp_path: Path) -> None:
    import transformers

    for name in ("mae", "hiera"):
        torch.manual_seed(0)
        model, processor = MODELS[name]()
        perturbed(model).save_pretrained(tmp_path / name)
        with pytest.raises(ModelSourceError, match="for pretraining"):
            wrap_module(model, processor)
        loaded = wrap_module(model, processor, task="features")
        if name == "mae":
            library = transformers.ViTMAEModel.from_pretrained(tmp_path / name, mask_ratio=0.0).eval()
            expected = library(pixels(2), noise=torch.arange(64.0).expand(2, -1)).last_hidden_state
        else:
            library = transformers.HieraModel.from_pretrained(tmp_path / name).eval()
            expected = library(pixels(2)).last_hidden_state
        with torch.no_grad():
            torch.testing.assert_close(loaded.module.named(pixels(2))["last_hidden_state"], expected)


def test_a_live_dense_model_is_of_its_task() -> None:
    for name, task in (("segformer", "segment"), ("mask2former", "segment"), ("dpt-depth", "depth")):
        model, processor = MODELS[name]()
        loaded = wrap_module(perturbed(model), processor)
        assert loaded.metadata.model.task == task
        assert loaded.metadata.class_names == (tuple(CLASSES.values()) if task == "segment" else ())


def test_an_encoder_that_transformers_has_no_class_for_is_refused_by_name(tmp_path: Path) -> None:
    save("upernet", tmp_path / "upernet")
    with pytest.raises(ModelSourceError, match="transformers has no class for that of a upernet") as caught:
        load(tmp_path / "upernet", task="features")
    assert "--features" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "task", "is_for"), [("segformer", "depth", "segment"), ("dpt-depth", "segment", "depth")]
)
def test_another_task_than_the_heads_is_refused(name: str, task: str, is_for: str, tmp_path: Path) -> None:
    save(name, tmp_path / name)
    with pytest.raises(ModelSourceError, match=f"a head for the task {task}, but .* is for {is_for}"):
        load(tmp_path / name, task=task)


@pytest.mark.parametrize("task", ["segment", "depth"])
def test_timm_has_no_dense_heads(task: str, loaded_vit: LoadedModel) -> None:
    from vitexport.host.sources.timm import chosen_task

    with pytest.raises(ModelSourceError, match=f"a head for the task {task}, but timm has classifiers"):
        chosen_task(loaded_vit.module.model, "vit", task)


def test_every_classifier_and_encoder_of_the_library_is_known() -> None:
    from transformers.models.auto import modeling_auto as auto

    def names(mapping: dict[str, object]) -> list[str]:
        entries = [entry if isinstance(entry, tuple | list) else (entry,) for entry in mapping.values()]
        return [str(name) for entry in entries for name in entry]

    for mapping, task in (
        (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "classify"),
        (auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, "segment"),
        (auto.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES, "depth"),
        (auto.MODEL_MAPPING_NAMES, "features"),
    ):
        found = {name: head.task if (head := head_of(name)) else None for name in names(mapping)}
        assert {name: other for name, other in found.items() if other != task} == {}


def test_a_vision_tower_is_loaded_by_its_own_class_though_the_librarys_list_has_it_not(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BlipVisionConfig(**shape, image_size=64, patch_size=8)
    model = perturbed(transformers.BlipVisionModel(config))
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.metadata.model.task == "features" and loaded.notes == ()
    with torch.no_grad():
        assert torch.equal(loaded.module.named(pixels(2))["pooler_output"], model(pixels(2)).pooler_output)


def test_a_model_without_masking_is_left_as_it_is() -> None:
    model = perturbed(MODELS["simmim"]()[0])
    assert not show_every_patch(model)


def test_frames_of_another_head_are_no_video(tmp_path: Path) -> None:
    """A Perceiver's configuration has them for its multimodal head, whatever head it was saved with."""
    small = {"num_latents": 4, "d_latents": 16, "num_self_attends_per_block": 1, "num_blocks": 1, "image_size": 8}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 1}
    config = PerceiverConfig(**small, **heads, num_labels=3)
    assert config.num_frames > 1
    model = perturbed(PerceiverForImageClassificationLearned(config))
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    planes = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loaded = load_model(ModelSettings(source=str(tmp_path))).module.named(planes)
        torch.testing.assert_close(loaded["logits"], model(pixel_values=planes).logits)


def test_a_head_that_gives_nothing_of_its_task_is_refused_with_what_it_gives(tmp_path: Path) -> None:
    if not hasattr(transformers, "PPLCNetForImageClassification"):
        pytest.skip("this version of transformers has no PP-LCNet, whose scores are called last_hidden_state")
    config = transformers.PPLCNetConfig(num_labels=3)
    perturbed(transformers.PPLCNetForImageClassification(config)).save_pretrained(tmp_path)
    ViTImageProcessor().save_pretrained(tmp_path)
    message = "Expected logits from PPLCNetForImageClassification, found last_hidden_state"
    with pytest.raises(ModelSourceError, match=message):
        load_model(ModelSettings(source=str(tmp_path)))
