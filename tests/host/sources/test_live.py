"""A live module exports like a checkpoint: copied, compared with its own outputs, with its own preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

import vitexport as vx
from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import ExportError, ModelSourceError
from vitexport.host.export_check import compare_with_pytorch
from vitexport.host.sources.live import wrap_module
from vitexport.inputs.preprocess import PreprocessSpec, Resize
from vitexport.runtimes import open_runtime

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SPEC = PreprocessSpec(
    image_size=(32, 32), resize=Resize(mode="squash", size=(32, 32)), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)


def perturbed(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def plain() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.Flatten(), torch.nn.Linear(64, 3))


def hugging_face(cls: Any, **config: Any) -> Any:
    return cls(ViTConfig(**SHAPE, image_size=32, patch_size=8, **config))


def small_timm() -> torch.nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
    )


@pytest.mark.parametrize(
    ("module", "given", "task", "family"),
    [
        (plain(), SPEC, "classify", "sequential"),
        (plain(), SPEC.model_dump(), "classify", "sequential"),
        (hugging_face(ViTForImageClassification, num_labels=4), SPEC, "classify", "vit"),
        (hugging_face(ViTModel), ViTImageProcessor(size={"height": 32, "width": 32}), "features", "vit"),
        (small_timm(), SPEC, "classify", "vit"),
    ],
    ids=["module", "mapping", "transformers", "features", "timm"],
)
def test_a_module_answers_from_its_file_as_it_did(
    module: torch.nn.Module, given: object, task: str, family: str, tmp_path: Path
) -> None:
    perturbed(module).train()  # as after a last step of training
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32))
    result = vx.export(module, tmp_path / "m.onnx", preprocess=given)
    assert module.training
    assert result.details["max_rel_difference"] < 1e-4
    with open_runtime(result.path) as runtime, torch.no_grad():
        metadata = ModelMetadata.from_metadata(runtime.metadata, where="m.onnx")
        found = runtime.run({"pixel_values": pixels.numpy()})
        expected = wrap_module(module, given).module.named(pixels)
    assert (metadata.model.task, metadata.model.family, metadata.model.source) == (task, family, "module")
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=1e-4 * float(value.abs().max()))


def test_the_module_stays_as_it_is(tmp_path: Path) -> None:
    model = perturbed(hugging_face(ViTForImageClassification, num_labels=4)).half()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vx.export(model, tmp_path / "m.onnx", preprocess=SPEC)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) and tensor.dtype == torch.float16 for name, tensor in before.items())


def test_preprocessing_and_class_names_travel(tmp_path: Path) -> None:
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3)
    names = {0: "cat", 1: "dog"}
    model = perturbed(hugging_face(ViTForImageClassification, id2label=names, label2id={"cat": 0, "dog": 1}))
    loaded = wrap_module(model, processor)
    assert loaded.metadata.class_names == ("cat", "dog")
    assert loaded.metadata.preprocess.mean == (0.1, 0.2, 0.3)
    assert wrap_module(model, processor, ["a", "b"]).metadata.class_names == ("a", "b")
    with vx.Predictor.open(vx.export(model, tmp_path / "m.onnx", preprocess=processor).path) as predictor:
        labels = {p.label for p in predictor.predict(np.zeros((40, 30, 3), np.uint8)).predictions}
    assert labels == {"cat", "dog"}


def test_other_weights_are_another_revision() -> None:
    module = plain()
    before = wrap_module(module, SPEC).metadata.model.revision
    assert wrap_module(module, SPEC).metadata.model.revision == before
    assert wrap_module(perturbed(module), SPEC).metadata.model.revision != before


@pytest.mark.parametrize(
    ("module", "given", "names", "message"),
    [
        (plain(), None, (), "Expected the preprocessing of 'Sequential', found NoneType"),
        (plain(), {"image_size": (32, 32)}, (), "not complete"),
        (plain(), SPEC, ("a",), "Expected 3 class names for 'Sequential', found 1"),
        (torch.nn.Linear(4, 4), SPEC, (), "does not run on images of 32 x 32"),
    ],
)
def test_what_is_missing_is_said(
    module: torch.nn.Module, given: object, names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelSourceError, match=message):
        vx.export(module, tmp_path / "m.onnx", preprocess=given, class_names=names)
    assert not (tmp_path / "m.onnx").exists()


def test_a_file_that_answers_otherwise_is_removed(tmp_path: Path) -> None:
    result = vx.export(plain(), tmp_path / "m.onnx", preprocess=SPEC)
    other = wrap_module(perturbed(plain()), SPEC)
    with pytest.raises(ExportError, match="does not answer as PyTorch does"):
        compare_with_pytorch(other, result.path)
    assert not result.path.exists()
