"""A model file, a bundle and an image whose right answers are known; the fixtures are known to all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.linear_model import save_image, write_bundle, write_model

__all__ = ["bundle_dir", "image_file", "model_file"]


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "linear.onnx")


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    return save_image(tmp_path / "image.png", 3)
