"""The fake machine of the engine tests, and an engine built on it, for the runtime's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_gpu import Pretend
from tests.support.onnx_graphs import floating, save
from vitexport.engine.build import build_engine
from vitexport.recipe.settings import EngineSettings


@pytest.fixture
def engine(pretend: Pretend, tmp_path: Path) -> Path:
    """An engine of two profiles (1, and 2 to 8), built on the fake Orin."""
    pretend()
    settings = EngineSettings.model_validate({"batch": "1,8", "timing_cache": tmp_path / "t"})
    build_engine(save(floating(), tmp_path / "model.onnx"), settings, tmp_path / "model.engine")
    return tmp_path / "model.engine"
