"""Every model row, in a shallow variant: exported with a dynamic batch, simplified, and equal to PyTorch at batch 1
and 5.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.suites.head_rows import ALL_ROWS
from benchmarks.suites.model_rows import ROWS, Row, settings_of
from vitexport.bundle.metadata import ModelMetadata
from vitexport.host.export import export_onnx
from vitexport.host.graph.file import read_onnx
from vitexport.host.graph.layers import block_of, find_attention, find_linears
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources import load_model
from vitexport.inputs.preprocess import batch
from vitexport.recipe.settings import ExportSettings, SimplifySettings
from vitexport.runtimes import open_runtime
from vitexport.runtimes.pytorch import PyTorchRuntime


def _distinct(rows: tuple[Row, ...]) -> list[Row]:
    """Leave out rows whose shallow variant is that of another row: ViT-L cut down is ViT-B cut down."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        model = row.model.replace("vit_large", "vit_base")
        settings = {**row.config, **row.shallow}
        key = [
            row.library,
            model,
            row.task,
            row.image_size,
            settings,
            row.processor,
            dict(row.processing),
            row.features,
            row.classes,
        ]
        text = json.dumps(key, sort_keys=True)
        if text not in seen:
            kept.append(row)
        seen.add(text)
    return kept


@pytest.mark.parametrize("row", _distinct(ALL_ROWS), ids=lambda row: row.name)
def test_row_exports_and_agrees_with_pytorch(
    row: Row, checkpoint: Callable[[Row], Path], pictures: list[Image.Image], tmp_path: Path
) -> None:
    loaded = load_model(settings_of(row, checkpoint(row)), image_size=row.image_size)
    export_onnx(loaded, ExportSettings(image_size=row.image_size), tmp_path / "exported.onnx")
    simplify_onnx(tmp_path / "exported.onnx", SimplifySettings(), tmp_path / "simplified.onnx")

    pixels = batch(pictures, loaded.metadata.preprocess, loaded.metadata.model.inputs[0])
    reference = PyTorchRuntime.from_module(
        loaded.module, loaded.metadata.model.inputs, loaded.metadata.model.outputs
    ).run({"pixel_values": pixels})
    with open_runtime(tmp_path / "simplified.onnx") as runtime:
        assert runtime.inputs == loaded.metadata.model.inputs
        assert runtime.outputs == loaded.metadata.model.outputs
        metadata = ModelMetadata.from_metadata(runtime.metadata, where="simplified.onnx")
        for images in (1, 5):
            for name, found in runtime.run({"pixel_values": pixels[:images]}).items():
                wanted = reference[name][:images]
                assert np.abs(wanted).max() > 0, name
                assert np.abs(wanted - found).max() <= 1e-4 * np.abs(wanted).max(), name
    assert metadata.preprocess == loaded.metadata.preprocess
    assert metadata.class_names == loaded.metadata.class_names
    assert [entry["stage"] for entry in metadata.history] == ["export", "simplify"]
    if row in ROWS:
        _check_structure(row, tmp_path / "simplified.onnx")


def _check_structure(row: Row, path: Path) -> None:
    model = read_onnx(path)
    attentions = [attention for attention in find_attention(model) if attention.block is not None]
    inside = [node for node in model.graph if block_of(node, attentions) is not None]
    depth = {"swin-hf": 4, "swin-timm": 4}.get(row.name, 2)
    assert len(attentions) == depth
    assert not {"IsNaN", "Where", "Shape", "Expand", "Gemm"} & {node.op_type for node in inside}
    linears = [layer for layer in find_linears(model) if layer.block is not None]
    roles = [layer.role for layer in linears]
    assert [roles.count(role) for role in ("qkv", "proj", "fc2")] == [depth] * 3
    assert all(layer.matmul.op_type == "MatMul" and len(layer.weight.shape or ()) == 2 for layer in linears)
    rotary = row.name.startswith(("dinov3", "eva02", "swin"))
    if not rotary:
        assert max(sum(block_of(node, attentions) == block for node in inside) for block in range(depth)) <= 28
        assert not [node.name for node in inside if node.op_type == "Slice"]
