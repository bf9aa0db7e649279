"""A folder in which every example can run: the repository's recipes and images, a bundle, models, a photo."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.support.paths import HOLDOUT, ROOT

__all__ = ["furnished", "workplace"]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the repository's recipes and images."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("recipes", "calib"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="session")
def furnished(workplace: Path, coloured_bundle: Path, small_model: Path) -> Path:
    """The same folder with a bundle, models and a photo under the names that examples use."""
    (workplace / "out").mkdir(exist_ok=True)
    for name in ("vit", "quickstart"):
        if not (workplace / "out" / name).exists():
            shutil.copytree(coloured_bundle, workplace / "out" / name)
    for name in ("vit.onnx", "other.onnx"):
        shutil.copyfile(small_model, workplace / name)
    shutil.copyfile(coloured_bundle / "models" / "int8.onnx", workplace / "vit-int8.onnx")
    Image.open(sorted(HOLDOUT.glob("*.png"))[0]).convert("RGB").save(workplace / "photo.jpg")
    return workplace
