"""Fixtures shared by all tests: where the real weights and images lie, and tiny images made on the spot."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import ROOT
from vitexport.pipeline.run import run
from vitexport.recipe.load import load_recipe, parse_recipe
from vitexport.recipe.settings import Recipe

pytest_plugins = ["tests.support.fake_gpu", "tests.support.serving", "tests.support.workplace"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory of real weights and images; tests that use it skip where it is absent."""
    path = Path(os.environ.get("VITEXPORT_SHARED", ROOT.parent / "shared"))
    if not (path / "models").is_dir():
        pytest.skip(f"real weights and images not found at {path}; set VITEXPORT_SHARED")
    return path


@pytest.fixture(scope="session")
def digits() -> Path:
    """The quickstart's images."""
    return ROOT / "calib"


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's trained model as a simplified float ONNX file, made once."""
    from vitexport.host.export import export_onnx
    from vitexport.host.simplify import simplify_onnx
    from vitexport.host.sources import load_model
    from vitexport.recipe.settings import ExportSettings, ModelSettings, SimplifySettings

    folder = tmp_path_factory.mktemp("small")
    loaded = load_model(ModelSettings(source=str(ROOT / "recipes" / "quickstart" / "model")))
    exported = export_onnx(loaded, ExportSettings(), folder / "exported.onnx")
    return simplify_onnx(exported.path, SimplifySettings(), folder / "model.onnx").path


@pytest.fixture
def photo() -> Image.Image:
    """A 60 x 40 RGB image with structure in every channel."""
    rows, columns = np.mgrid[0:40, 0:60]
    planes = np.stack([rows * 6, columns * 4, (rows * columns) % 251], axis=-1)
    return Image.fromarray(planes.astype(np.uint8))


def _tinted(source: Path, target: Path, count: int) -> dict[str, int]:
    """Write colour versions of grey digits, so that swapped channels can be seen; returns file name to label."""
    labels = {
        Path(entry["file"]).name: entry["label"]
        for entry in json.loads((ROOT / "calib" / "manifest.json").read_text())["images"]
    }
    random = np.random.default_rng(3)
    target.mkdir()
    chosen = sorted(source.rglob("*.png"))
    for path in chosen[:: max(1, len(chosen) // count)][:count]:
        grey = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)
        tint = np.array([1.0, 0.85, 0.7]) * random.uniform(0.9, 1.0)
        Image.fromarray((grey * tint).astype(np.uint8)).save(target / path.name)
    return {path.name: labels[path.name] for path in target.iterdir()}


@pytest.fixture(scope="session")
def coloured_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A short run of the quickstart on colour images."""
    folder = tmp_path_factory.mktemp("colour")
    labels = _tinted(ROOT / "calib" / "holdout", folder / "verification", 64)
    (folder / "labels.json").write_text(json.dumps(labels))
    _tinted(ROOT / "calib" / "calibration", folder / "calibration", 64)
    content = load_recipe(ROOT / "recipes" / "quickstart.yaml").model_dump(mode="json")
    content["data"] = {
        "calibration": {"images": str(folder / "calibration")},
        "verification": {"images": str(folder / "verification"), "labels": str(folder / "labels.json")},
    }
    content["benchmark"]["seconds"] = 0.05
    content["quantize"]["preset"] = "fast"
    content["verify"]["quantized_tolerance"] = {"min_sqnr_db": 25, "min_agreement": 0.95}
    content["gates"] = {}
    return parse_recipe(content, where="test")


@pytest.fixture(scope="session")
def coloured_bundle(coloured_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of that run; tests that change it copy it first."""
    result = run(coloured_recipe, tmp_path_factory.mktemp("sound"))
    assert result.verification is not None
    assert result.verification.passed, result.verification.failures()
    assert result.bundle is not None
    return result.bundle.root
