"""Layers whose output is an answer of the graph: a head behind an activation, and an inner layer that was named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vitexport as vx
from tests.support.checkpoints import save_vit
from tests.support.linear_model import PREPROCESS, save_image
from vitexport.bundle.metadata import ModelMetadata
from vitexport.host.graph.file import read_onnx
from vitexport.host.graph.layers import find_linears
from vitexport.inputs.images import load_image
from vitexport.inputs.preprocess import preprocess
from vitexport.runtimes import open_runtime


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(64):
        save_image(folder / f"{index}.png", index, height=32, width=32)
    return folder


class Hidden(torch.nn.Module):
    """Two layers and an activation: the second one is no fc2 of a block but the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(768, 64)
        self.classifier = torch.nn.Linear(64, 32)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.classifier(torch.nn.functional.gelu(self.body(pixel_values.flatten(1))))
        return answer


def test_a_head_behind_an_activation_is_a_head(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Hidden()
    vx.export(module, tmp_path / "exported.onnx", preprocess=PREPROCESS)
    vx.simplify(tmp_path / "exported.onnx", tmp_path / "a.onnx")
    roles = {layer.name: layer.role for layer in find_linears(read_onnx(tmp_path / "a.onnx"))}
    assert roles == {"body": "fc1", "classifier": "head"}


@pytest.mark.parametrize("preset", ["default", "fast"])
def test_an_inner_layer_may_be_an_answer_and_be_quantized(tmp_path: Path, images: Path, preset: str) -> None:
    model = save_vit(tmp_path / "model", num_labels=3)
    name = "vit.layers.0.mlp.fc2"
    vx.export(model, tmp_path / "exported.onnx", features=[name, "vit.layernorm"])
    vx.simplify(tmp_path / "exported.onnx", tmp_path / "a.onnx")
    done = vx.quantize(tmp_path / "a.onnx", images, tmp_path / "int8.onnx", preset=preset)
    assert done.details["quantized"]
    with open_runtime(tmp_path / "a.onnx") as exact, open_runtime(tmp_path / "int8.onnx") as int8:
        assert [spec.name for spec in int8.outputs] == [spec.name for spec in exact.outputs]
        assert len(exact.outputs) == 2
        spec = ModelMetadata.from_metadata(exact.metadata, where="a.onnx").preprocess
        feed = {exact.inputs[0].name: np.stack([preprocess(load_image(images / "3.png"), spec)])}
        expected, found = exact.run(feed), int8.run(feed)
    for output, value in expected.items():
        noise = np.square(found[output] - value).sum() / np.square(value).sum()
        assert 10 * np.log10(1 / noise) > 25, output
