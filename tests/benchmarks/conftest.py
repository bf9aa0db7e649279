"""The quickstart's small trained model as a float ONNX file, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitexport.host.export import export_onnx
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources import load_model
from vitexport.recipe import ExportSettings, ModelSettings, SimplifySettings

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    loaded = load_model(ModelSettings(source=str(ROOT / "recipes" / "quickstart" / "model")))
    exported = export_onnx(loaded, ExportSettings(), folder / "exported.onnx")
    return simplify_onnx(exported.path, SimplifySettings(), folder / "model.onnx").path
