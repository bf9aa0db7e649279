"""Position embeddings at another image size are the source library's own, baked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import transformers

from benchmarks.suites.model_rows import Row, row_named, source_of
from tests.support.dense_models import perturbed
from vitexport.host.export import export_onnx
from vitexport.host.sources import load_model
from vitexport.host.sources.baked import bake_positions
from vitexport.host.sources.wrapping import ImageModel
from vitexport.inputs.preprocess import PreprocessSpec, Resize
from vitexport.recipe.settings import ExportSettings, ModelSettings
from vitexport.runtimes import open_runtime

_SIZES = [(384, 384), (160, 288)]
_HUGGINGFACE = ["vit-b16-hf", "deit-hf", "beit-hf", "clip-hf", "siglip-hf", "dinov2-hf", "dinov3-hf"]


@pytest.mark.parametrize(("name", "size"), [*((name, _SIZES[1]) for name in _HUGGINGFACE), ("vit-b16-hf", _SIZES[0])])
def test_huggingface_positions_are_what_the_library_computes(
    name: str, size: tuple[int, int], checkpoint: Callable[[Row], Path]
) -> None:
    row = row_named(name)
    folder = checkpoint(row)
    size = (size[0] // 32 * 28, size[1] // 32 * 28) if "dinov2" in name else size
    loaded = load_model(ModelSettings(source=str(folder), task=row.task), image_size=size)
    assert loaded.metadata.preprocess.image_size == size
    original = getattr(transformers, row.model).from_pretrained(folder).eval()
    request = {} if name.startswith("dino") else {"interpolate_pos_encoding": True}
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = original(pixel_values=image, **request)
        found = dict(zip((spec.name for spec in loaded.metadata.model.outputs), loaded.module(image), strict=True))
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=0)


def test_positions_that_are_asked_for_through_keywords_are_interpolated_too(tmp_path: Path) -> None:
    """CLIPForImageClassification names no such argument; it passes its keywords on to the vision tower."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.CLIPConfig(vision_config={**shape, "image_size": 32, "patch_size": 8}, num_labels=3)
    model = perturbed(transformers.CLIPForImageClassification(config))
    model.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )
    image = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    native = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        larger = load_model(ModelSettings(source=str(tmp_path)), image_size=(48, 64)).module(image)[0]
        assert torch.equal(larger, model(image, interpolate_pos_encoding=True).logits)
        assert torch.equal(load_model(ModelSettings(source=str(tmp_path))).module(native)[0], model(native).logits)


# timm's own code, called here directly, resamples BEiT's table with indexing that torch warns about.
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning")
@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize("name", ["vit-b16-timm", "beit_base_patch16_224.in22k_ft_in22k_in1k", "eva02-timm"])
def test_timm_positions_are_what_the_library_computes(
    name: str, size: tuple[int, int], checkpoint: Callable[[Row], Path]
) -> None:
    row = row_named(name)
    size = (size[0] // 32 * 28, size[1] // 32 * 28) if "eva02" in name else size
    source = source_of(row, checkpoint(row))
    loaded = load_model(ModelSettings(source=source), image_size=size)
    original = timm.create_model(source.removeprefix("timm:"), pretrained=True, img_size=size).eval()
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(image)[0], original(image), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["beit-hf", "vit-b16-timm"])
def test_a_non_square_export_agrees_with_pytorch(name: str, checkpoint: Callable[[Row], Path], tmp_path: Path) -> None:
    row, size = row_named(name), (160, 288)
    loaded = load_model(ModelSettings(source=source_of(row, checkpoint(row))), image_size=size)
    export_onnx(loaded, ExportSettings(image_size=size), tmp_path / "m.onnx")
    image = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), open_runtime(tmp_path / "m.onnx") as runtime:
        assert runtime.inputs[0].shape == ("batch", 3, 160, 288)
        found = torch.from_numpy(runtime.run({"pixel_values": image.numpy()})["logits"])
        torch.testing.assert_close(found, loaded.module(image)[0], rtol=0, atol=1e-4)


class _Pyramid(torch.nn.Module):
    """One embedding that is asked for positions at two sizes, as a pyramid does."""

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.arange(16.0).reshape(1, 1, 4, 4))

        def interpolate_pos_encoding(self, size: int) -> torch.Tensor:
            return torch.nn.functional.interpolate(self.table, size=(size, size), mode="bilinear")

    def __init__(self) -> None:
        super().__init__()
        self.embedding = self.Embedding()

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        fine, coarse = (self.embedding.interpolate_pos_encoding(size) for size in (8, 2))
        return (planes[:, :1] + fine).flatten(1) + coarse.mean()


def test_positions_asked_for_at_several_sizes_are_not_frozen_at_the_last() -> None:
    spec = PreprocessSpec(image_size=(8, 8), resize=Resize(size=(8, 8)), mean=(0, 0, 0), std=(1, 1, 1))
    module = ImageModel(_Pyramid(), lambda model, planes: {"logits": model(planes)})
    planes = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(planes)[0]
        bake_positions(module, spec, where="pyramid")
        assert torch.equal(module(planes)[0], expected)
