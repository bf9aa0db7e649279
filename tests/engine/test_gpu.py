"""On a GPU with a product that accepts it. Each check is a process of its own, so that a crash is one failed test.

None of these has run yet on the machines the project was developed on; docs/tensorrt.md says what ran where.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suites.model_rows import Row, row_named
from tests.support.engine_models import Variants
from tests.support.paths import ROOT
from vitexport.device.profiles import RTX_CAPABILITIES, precisions_of
from vitexport.runtimes.cuda.probe import GpuInfo, probe_cuda

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]


def _product(gpu: GpuInfo) -> str | None:
    """The product that is installed and accepts this GPU; TensorRT first, as it is the one devices have."""
    if importlib.util.find_spec("tensorrt") is not None:
        return "tensorrt"
    if importlib.util.find_spec("tensorrt_rtx") is not None and gpu.compute_capability in RTX_CAPABILITIES:
        return "tensorrt-rtx"
    return None


@pytest.fixture(scope="module")
def gpu() -> GpuInfo:
    state = probe_cuda()
    if state.problem:
        pytest.skip(f"no GPU: {state.problem}")
    return state.gpus[0]


@pytest.fixture(scope="module")
def product(gpu: GpuInfo) -> str:
    found = _product(gpu)
    if found is None:
        pytest.skip(f"no installed product accepts {gpu.name} (compute capability {gpu.compute_capability})")
    if not any(importlib.util.find_spec(name) for name in ("cuda", "pycuda")):
        pytest.skip("neither cuda-python nor pycuda is installed")
    return found


@pytest.fixture
def model(shallow: Callable[[Row], Variants], product: str) -> Variants:
    return shallow(row_named("vit-b16-timm"))


def _check(name: str, product: str, model: Path, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.gpu_checks", name, product, str(model), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-4000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_an_engine_built_here_opens_here(product: str, model: Variants, tmp_path: Path) -> None:
    found = _check("deserialize", product, model["fp32"], tmp_path)
    assert found["inputs"] == found["sidecar"]


@pytest.mark.parametrize(
    ("precision", "relative", "cosine"), [("fp32", 1e-3, 0.99999), ("fp16", 1e-2, 0.9999), ("int8", 1.0, 0.9995)]
)
def test_engine_agrees_with_onnx_runtime(
    precision: str, relative: float, cosine: float, product: str, model: Variants, tmp_path: Path
) -> None:
    found = _check("parity", product, model[precision], tmp_path)
    assert found["relative"] <= relative
    assert found["cosine"] >= cosine


def test_real_deit_tiny_in_int8_agrees_with_onnx_runtime(product: str, deit: Variants, tmp_path: Path) -> None:
    assert _check("parity", product, deit["int8"], tmp_path)["cosine"] >= 0.9995


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
def test_the_audit_finds_what_was_requested(
    precision: str, gpu: GpuInfo, product: str, deit: Variants, tmp_path: Path
) -> None:
    if precision == "fp8" and "fp8" not in precisions_of(gpu.compute_capability):
        pytest.skip(f"{gpu.name} has no FP8")
    found = _check("audit", product, deit[precision], tmp_path)
    assert found["passed"], [gemm for gemm in found["gemms"] if gemm["executed"] != gemm["requested"]]


def test_pycuda_memory_gives_the_same_answers(product: str, model: Variants, tmp_path: Path) -> None:
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("pycuda is not installed")
    found = _check("pycuda", product, model["fp32"], tmp_path)
    assert found["relative"] <= 1e-3


def test_an_engine_is_verified_against_pytorchs_recorded_answers(
    product: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = str(request.getfixturevalue("coloured_bundle"))  # made only where there is a GPU
    engine = tmp_path / "vit.engine"
    vitexport = [sys.executable, "-m", "vitexport.cli"]
    build = ["build-engine", bundle, "--variant", "simplified", "-o", str(engine), "--product", product]
    built = subprocess.run([*vitexport, *build], cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    verify = ["verify", bundle, "--engine", str(engine), "--json"]
    done = subprocess.run([*vitexport, *verify], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    variant = json.loads(done.stdout)["variants"][-1]
    assert (variant["name"], variant["runtime"]) == ("engine", product)
    assert variant["executed"]["float32"] >= 0.99


def test_a_cuda_graph_gives_the_same_bits(product: str, model: Variants, tmp_path: Path) -> None:
    assert _check("graph", product, model["fp32"], tmp_path)["same"]


def test_latency_is_measured(product: str, deit: Variants, tmp_path: Path, record_property: Any) -> None:
    found = _check("latency", product, deit["int8"], tmp_path)
    record_property("latency", found)
    assert 0 < found["p50_ms_batch_1"] <= found["p50_ms_batch_8"] * 1.5


def test_a_stripped_engine_is_complete_after_refit(product: str, model: Variants, tmp_path: Path) -> None:
    assert _check("refit", product, model["fp32"], tmp_path)["relative"] <= 1e-3


def test_two_threads_get_their_own_results(product: str, model: Variants, tmp_path: Path) -> None:
    assert _check("threads", product, model["fp32"], tmp_path) == {"wrong": 0}


def test_ten_thousand_runs_do_not_grow(product: str, model: Variants, tmp_path: Path) -> None:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("counting device memory needs cuda-python")
    found = _check("growth", product, model["int8"], tmp_path)
    assert found["host_mib"] < 16
    assert found["device_mib"] < 1
