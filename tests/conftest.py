"""Fixtures shared by all tests: where the real weights and images lie, and tiny images made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.fixture
def photo() -> Image.Image:
    """A 60 x 40 RGB image with structure in every channel."""
    rows, columns = np.mgrid[0:40, 0:60]
    planes = np.stack([rows * 6, columns * 4, (rows * columns) % 251], axis=-1)
    return Image.fromarray(planes.astype(np.uint8))
