"""The fake machine of the engine tests, and an engine built on it, for the runtime's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine.conftest import Pretend, pretend
from tests.engine.graphs import floating, save
from vitexport.engine.build import build_engine
from vitexport.engine_settings import EngineSettings

__all__ = ["batch_of", "expected", "pretend"]


@pytest.fixture
def engine(pretend: Pretend, tmp_path: Path) -> Path:
    """An engine of two profiles (1, and 2 to 8), built on the fake Orin."""
    pretend()
    settings = EngineSettings.model_validate({"batch": "1,8", "timing_cache": tmp_path / "t"})
    build_engine(save(floating(), tmp_path / "model.onnx"), settings, tmp_path / "model.engine")
    return tmp_path / "model.engine"


def batch_of(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((size, 4)).astype(np.float32)}


def expected(feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([feeds["x"].sum(1), feeds["x"].max(1)], axis=1)
