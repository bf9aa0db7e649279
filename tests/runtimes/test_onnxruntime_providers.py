"""ONNX Runtime's execution providers on a GPU: chosen by name and device, and never silently replaced by the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests.runtimes.conftest import Opened
from tests.support.onnx_graphs import floating, save
from vitexport.errors import RuntimeBackendError
from vitexport.runtimes import RuntimeOptions, open_runtime


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(floating(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("CPUExecutionProvider", {})),
        ({"device": "cuda"}, ("CUDAExecutionProvider", {"device_id": "0"})),
        ({"device": "cuda:1"}, ("CUDAExecutionProvider", {"device_id": "1"})),
        (
            {"device": "cuda", "cuda_graph": True},
            ("CUDAExecutionProvider", {"device_id": "0", "enable_cuda_graph": "1"}),
        ),
        ({"execution_provider": "tensorrt", "device": "cuda:1"}, ("TensorrtExecutionProvider", {"device_id": "1"})),
    ],
)
def test_execution_provider_and_gpu_are_chosen(
    options: dict[str, Any], expected: tuple[str, dict[str, str]], gpu_build: list[Opened], model: Path
) -> None:
    with open_runtime(model, options=RuntimeOptions(**options)) as runtime:
        assert runtime.run({"x": np.zeros((2, 8, 64), np.float32)})["y"].shape == (2, 8, 32)
    assert [opened.providers for opened in gpu_build] == [[expected]]


def test_an_execution_provider_that_fell_back_to_the_cpu_is_an_error(
    gpu_build: list[Opened], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeBackendError, match="cannot use CUDAExecutionProvider here; it fell back to CPU"):
        open_runtime(model, options=RuntimeOptions(device="cuda"))


def test_an_execution_provider_this_build_lacks_is_named(model: Path) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("the GPU build of ONNX Runtime is installed")
    with pytest.raises(RuntimeBackendError, match="has no CUDAExecutionProvider"):
        open_runtime(model, options=RuntimeOptions(execution_provider="cuda"))
    with pytest.raises(RuntimeBackendError, match="cpu, cuda, tensorrt, found 'npu'"):
        open_runtime(model, options=RuntimeOptions(execution_provider="npu"))
