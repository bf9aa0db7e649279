"""An engine on the fake machine, and ONNX Runtime as if its GPU build were installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from tests.support.fake_gpu import Pretend
from tests.support.onnx_graphs import floating, save
from vitexport.engine.build import build_engine
from vitexport.recipe.engine_settings import EngineSettings


@pytest.fixture
def engine(pretend: Pretend, tmp_path: Path) -> Path:
    """An engine of two profiles (1, and 2 to 8), built on the fake Orin."""
    pretend()
    settings = EngineSettings.model_validate({"batch": "1,8", "timing_cache": tmp_path / "t"})
    build_engine(save(floating(), tmp_path / "model.onnx"), settings, tmp_path / "model.engine")
    return tmp_path / "model.engine"


@dataclass(frozen=True)
class Opened:
    """What a session was asked for: ``onnxruntime.SessionOptions`` and its execution providers."""

    options: Any
    providers: list[Any]


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> list[Opened]:
    """Pretend that the GPU build is installed; sessions really run on the CPU and note what was asked."""
    sessions: list[Opened] = []
    real: Callable[..., Any] = ort.InferenceSession

    class Pretending:
        def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
            self._providers = [providers[0][0], "CPUExecutionProvider"]
            self._session = real(path, options, providers=["CPUExecutionProvider"])
            sessions.append(Opened(options, providers))

        def get_providers(self) -> list[str]:
            return self._providers

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    monkeypatch.setattr(ort, "InferenceSession", Pretending)
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: everything)
    return sessions
