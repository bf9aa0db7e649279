"""DeiT-Tiny with its real weights on labelled photographs: the exported files classify as PyTorch does."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from vitexport.host.export import export_onnx
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources import LoadedModel, load_model
from vitexport.inputs.images import list_images, load_image
from vitexport.inputs.preprocess import normalize, pixels
from vitexport.recipe.settings import ExportSettings, ModelSettings, SimplifySettings
from vitexport.runtimes import Runtime, open_runtime
from vitexport.runtimes.pytorch import PyTorchRuntime

_BATCH = 32


def _pixels(folder: Path, count: int, loaded: LoadedModel) -> NDArray[np.uint8]:
    return np.stack([pixels(load_image(path), loaded.metadata.preprocess) for path in list_images(folder, limit=count)])


def _logits(runtime: Runtime, images: NDArray[np.uint8], loaded: LoadedModel) -> NDArray[np.float32]:
    rows = []
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        feed = (
            part
            if runtime.inputs[0].dtype == "uint8"
            else np.stack([normalize(p, loaded.metadata.preprocess) for p in part])
        )
        rows.append(runtime.run({"pixel_values": feed})["logits"])
    return np.concatenate(rows).astype(np.float32)


@pytest.mark.parametrize(
    ("form", "inputs", "count"),
    [
        ("deit-tiny-timm", ("float32", "uint8"), 32),
        ("deit-tiny-hf", ("float32",), 32),
        pytest.param("deit-tiny-timm", ("float32", "uint8"), 384, marks=pytest.mark.slow),
        pytest.param("deit-tiny-hf", ("float32", "uint8"), 384, marks=pytest.mark.slow),
    ],
)
def test_top1_on_dev_is_that_of_pytorch_in_both_forms_and_with_pixels(
    form: str, inputs: tuple[Literal["float32", "uint8"], ...], count: int, shared: Path, tmp_path: Path
) -> None:
    folder = shared / "models" / form
    source = f"timm:local-dir:{folder}" if form.endswith("timm") else str(folder)
    loaded = load_model(ModelSettings(source=source))
    images = _pixels(shared / "data" / "imagenet-1k-sample" / "dev", count, loaded)
    assert len(images) == count
    reference = _logits(
        PyTorchRuntime.from_module(loaded.module, loaded.metadata.model.inputs, loaded.metadata.model.outputs),
        images,
        loaded,
    )
    found = {}
    for kind in inputs:
        export_onnx(loaded, ExportSettings(input=kind), tmp_path / f"{kind}.raw.onnx")
        simplify_onnx(tmp_path / f"{kind}.raw.onnx", SimplifySettings(), tmp_path / f"{kind}.onnx")
        with open_runtime(tmp_path / f"{kind}.onnx") as runtime:
            found[kind] = _logits(runtime, images, loaded)
    assert np.abs(found["float32"] - reference).max() <= 1e-4
    for logits in found.values():
        assert np.abs(logits - found["float32"]).max() <= 1e-4
        np.testing.assert_array_equal(logits.argmax(axis=1), reference.argmax(axis=1))
