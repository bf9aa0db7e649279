"""Checkpoints of shallow models, every parameter perturbed, written once per session and loaded by the real code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.suites.model_rows import Row, build
from vitexport.host.sources import LoadedModel, load_model
from vitexport.recipe.settings import ModelSettings

Checkpoint = Callable[[Row], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Build a row's shallow checkpoint, once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(row: Row) -> Path:
        folder = root / row.name.replace("/", "_")
        if not folder.is_dir():
            build(row, folder, shallow=True, classes=10)
        return folder

    return make


@pytest.fixture(scope="session")
def loaded_vit(checkpoint: Checkpoint) -> LoadedModel:
    """A shallow timm ViT; tests must not change it."""
    from benchmarks.suites.model_rows import row_named, source_of

    row = row_named("vit-b16-timm")
    return load_model(ModelSettings(source=source_of(row, checkpoint(row))))


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Five images of different sizes with smooth structure and noise in every channel."""
    generator = np.random.default_rng(7)
    return [
        _picture(generator, height, width)
        for height, width in ((240, 320), (333, 250), (224, 224), (97, 501), (640, 480))
    ]


def _picture(generator: np.random.Generator, height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(2 * np.pi * (a * rows + b * columns)) for a, b in generator.uniform(0.5, 6, size=(3, 2))]
    noise = generator.normal(scale=12, size=(height, width, 3))
    pixels: NDArray[np.uint8] = np.clip(127 + 90 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)
