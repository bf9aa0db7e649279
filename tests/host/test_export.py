"""What an exported file promises: interface, metadata, opsets, pixels, external data, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import ExportError
from vitexport.host.export import export_onnx
from vitexport.host.graph import file as graph_file
from vitexport.host.graph.file import read_onnx
from vitexport.host.graph.layers import find_attention, find_linears
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources import LoadedModel
from vitexport.host.sources.live import wrap_module
from vitexport.host.sources.wrapping import ImageModel
from vitexport.inputs.preprocess import PreprocessSpec, Resize, batch
from vitexport.recipe.settings import ExportSettings, SimplifySettings
from vitexport.runtimes import open_runtime


def _agree(loaded: LoadedModel, path: Path, images: int) -> None:
    size = [int(axis) for axis in loaded.metadata.model.inputs[0].shape[1:]]
    pixels = torch.randn(images, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), open_runtime(path) as runtime:
        found = runtime.run({"pixel_values": pixels.numpy()})
        for spec, wanted in zip(loaded.metadata.model.outputs, loaded.module(pixels), strict=True):
            np.testing.assert_allclose(found[spec.name], wanted.numpy(), atol=1e-4 * float(wanted.abs().max()))


def test_metadata_says_everything_and_no_local_path(loaded_vit: LoadedModel, tmp_path: Path) -> None:
    result = export_onnx(loaded_vit, ExportSettings(), tmp_path / "m.onnx")
    assert result.path == tmp_path / "m.onnx" and result.precision == "float32" and result.companions == ()
    with open_runtime(result.path) as runtime:
        metadata = ModelMetadata.from_metadata(runtime.metadata, where="m.onnx")
    assert (metadata.model, metadata.preprocess, metadata.class_names) == (
        loaded_vit.metadata.model,
        loaded_vit.metadata.preprocess,
        loaded_vit.metadata.class_names,
    )
    (entry,) = metadata.history
    assert entry["torch"] == torch.__version__.partition("+")[0] and json.loads(entry["settings"])["opset"] == 20
    content = (tmp_path / "m.onnx").read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content and str(tmp_path).encode() not in content


def test_nodes_and_weights_carry_the_names_of_pytorch(loaded_vit: LoadedModel, tmp_path: Path) -> None:
    export_onnx(loaded_vit, ExportSettings(), tmp_path / "m.onnx")
    simplify_onnx(tmp_path / "m.onnx", SimplifySettings(), tmp_path / "s.onnx")
    model = read_onnx(tmp_path / "s.onnx")
    names = [layer.name for layer in find_linears(model)]
    assert names[1:5] == ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    for layer in find_linears(model):
        loaded_vit.module.get_submodule(f"model.{layer.name}")
        assert layer.weight.name == f"{layer.name}.weight"
        assert layer.bias is not None and layer.bias.name == f"{layer.name}.bias"
    assert [attention.name for attention in find_attention(model)] == ["blocks.0.attn", "blocks.1.attn"]


@pytest.mark.parametrize("images", [1, 3])
def test_a_fixed_batch_is_fixed_and_canonical(loaded_vit: LoadedModel, tmp_path: Path, images: int) -> None:
    export_onnx(loaded_vit, ExportSettings(batch=images), tmp_path / "m.onnx")
    result = simplify_onnx(tmp_path / "m.onnx", SimplifySettings(), tmp_path / "s.onnx")
    with open_runtime(tmp_path / "s.onnx") as runtime:
        assert runtime.inputs[0].shape == (images, 3, 224, 224)
        assert runtime.outputs[0].shape == (images, 10)
    assert result.details["operators"]["Split"] == 2
    _agree(loaded_vit, tmp_path / "s.onnx", images)


def test_another_opset_than_was_asked_for_is_refused(
    loaded_vit: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.onnx.export  # leaves the graph at 18 where it cannot convert it to 17
    monkeypatch.setattr(torch.onnx, "export", lambda *given, **named: real(*given, **{**named, "opset_version": 18}))
    with pytest.raises(ExportError, match="Expected a graph of opset 17, found one of opset 18"):
        export_onnx(loaded_vit, ExportSettings(opset=17), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_every_opset_gives_a_canonical_graph(loaded_vit: LoadedModel, tmp_path: Path, opset: int) -> None:
    export_onnx(loaded_vit, ExportSettings(opset=opset), tmp_path / "m.onnx")
    result = simplify_onnx(tmp_path / "m.onnx", SimplifySettings(), tmp_path / "s.onnx")
    model = read_onnx(tmp_path / "s.onnx")
    assert model.graph.opset_imports[""] == opset
    operators = result.details["operators"]
    assert operators["LayerNormalization"] == 5 and operators["MatMul"] == 13 and operators["Softmax"] == 2
    assert operators.get("Gelu", 0) == (2 if opset >= 20 else 0)
    assert [layer.role for layer in find_linears(model)] == ["patch", *["qkv", "proj", "fc1", "fc2"] * 2, "head"]
    _agree(loaded_vit, tmp_path / "s.onnx", 2)


def test_pixels_in_give_the_logits_of_planes_in(
    loaded_vit: LoadedModel, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    planes_file, pixels_file = tmp_path / "planes.onnx", tmp_path / "pixels.onnx"
    export_onnx(loaded_vit, ExportSettings(), planes_file)
    export_onnx(loaded_vit, ExportSettings(input="uint8"), tmp_path / "raw.onnx")
    simplify_onnx(tmp_path / "raw.onnx", SimplifySettings(), pixels_file)
    with open_runtime(planes_file) as planes, open_runtime(pixels_file) as pixels:
        assert pixels.inputs[0].describe() == "pixel_values: uint8[batch, 224, 224, 3]"
        assert ModelMetadata.from_metadata(pixels.metadata, where="").model.inputs == pixels.inputs
        wanted = planes.run({"pixel_values": batch(pictures, loaded_vit.metadata.preprocess, planes.inputs[0])})[
            "logits"
        ]
        found = pixels.run({"pixel_values": batch(pictures, loaded_vit.metadata.preprocess, pixels.inputs[0])})[
            "logits"
        ]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_large_weights_go_to_a_file_beside_the_model(
    loaded_vit: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_file, "EXTERNAL_DATA_BYTES", 100_000)
    exported = export_onnx(loaded_vit, ExportSettings(), tmp_path / "m.onnx")
    simplified = simplify_onnx(exported.path, SimplifySettings(), tmp_path / "s.onnx")
    for result in (exported, simplified):
        assert result.companions == (result.path.with_name(f"{result.path.name}.data"),)
        assert result.path.stat().st_size < 200_000 < result.companions[0].stat().st_size
        _agree(loaded_vit, result.path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data", "s.onnx", "s.onnx.data"]


class _FixedBatch(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.reshape(2, -1)[:, :4]


class _DataDependent(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1) if pixels.sum() > 0 else pixels.flatten(1) * 2


@pytest.mark.parametrize("model", [_FixedBatch(), _DataDependent()])
def test_a_model_that_cannot_be_traced_is_an_error_and_leaves_nothing(
    model: torch.nn.Module, loaded_vit: LoadedModel, tmp_path: Path
) -> None:
    module = ImageModel(model, lambda inner, pixels: {"logits": inner(pixels)})
    broken = LoadedModel(module, loaded_vit.metadata)
    with pytest.raises(ExportError) as caught:
        export_onnx(broken, ExportSettings(), tmp_path / "m.onnx")
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_the_model_as_it_was(loaded_vit: LoadedModel, tmp_path: Path) -> None:
    image = torch.randn(2, 3, 224, 224)
    flags = [getattr(m, "fused_attn", None) for m in loaded_vit.module.modules()]
    with torch.no_grad():
        before = loaded_vit.module(image)[0]
        export_onnx(loaded_vit, ExportSettings(), tmp_path / "m.onnx")
        assert torch.equal(loaded_vit.module(image)[0], before)
    assert [getattr(m, "fused_attn", None) for m in loaded_vit.module.modules()] == flags and True in flags


class Clipped(torch.nn.Module):
    """Three layers that clip one tensor, each to its own limits, as quantization-aware training leaves them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(48, 3) for _ in range(3))
        for index in range(3):
            self.register_buffer(f"low{index}", torch.tensor(-0.2 - index / 4))
            self.register_buffer(f"high{index}", torch.tensor(0.3 + index / 4))

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        rows = 2 * planes.flatten(1)
        clipped = [torch.clamp(rows, getattr(self, f"low{i}"), getattr(self, f"high{i}")) for i in range(3)]
        return torch.stack([layer(part) for layer, part in zip(self.layers, clipped, strict=True)]).sum(dim=0)


def test_several_clips_of_one_tensor_keep_their_own_limits(tmp_path: Path) -> None:
    spec = PreprocessSpec(image_size=(4, 4), resize=Resize(mode="squash", size=(4, 4)), mean=(0.5,) * 3, std=(0.3,) * 3)
    loaded = wrap_module(Clipped(), spec)
    _agree(loaded, export_onnx(loaded, ExportSettings(), tmp_path / "m.onnx").path, 2)
    simplify_onnx(tmp_path / "m.onnx", SimplifySettings(), tmp_path / "s.onnx")
    _agree(loaded, tmp_path / "s.onnx", 2)
