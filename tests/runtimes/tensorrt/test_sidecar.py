"""Engines that were made for something else are refused in words, before TensorRT sees them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_gpu import Pretend
from vitexport.errors import RuntimeBackendError, VitexportError
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.runtimes.cuda.probe import GpuInfo, probe_cuda
from vitexport.runtimes.tensorrt.sidecar import EngineSidecar, mismatches, read_sidecar, sidecar_path

L4 = GpuInfo(0, "L4", "8.9", 24 << 30, False)


def test_a_plan_without_a_sidecar_opens_with_its_own_shapes(pretend: Pretend, engine: Path) -> None:
    pretend()
    sidecar_path(engine).unlink()
    with open_runtime(engine) as runtime:
        assert [spec.describe() for spec in runtime.inputs] == ["x: float32[batch, 4]"]
        assert runtime.metadata == {}


def _rewrite(engine: Path, **changes: Any) -> EngineSidecar:
    data = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps({**data, **changes}))
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    return sidecar


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "10.13.0"}, "an engine of version 10.13.0, and this is version 10.3.0"),
        ({"version": "9.0.0", "version_compatible": False}, "version 9.0.0"),
        ({"compute_capabilities": ["8.9"], "gpu": "L4"}, r"compute capability 8.9 \(L4\), and Orin has 8.7"),
        ({"platform": "win32-amd64"}, "built on win32-amd64"),
        ({"needs_refit": True}, "weights were left out"),
    ],
)
def test_engines_made_for_something_else_are_refused_before_tensorrt_sees_them(
    changes: dict[str, Any], message: str, pretend: Pretend, engine: Path
) -> None:
    machine = pretend()
    _rewrite(engine, **changes)
    with pytest.raises(RuntimeBackendError, match=message):
        open_runtime(engine)
    assert machine.count("create engine") == 0


def test_an_engine_of_the_other_product_is_refused_by_name(pretend: Pretend, engine: Path) -> None:
    machine = pretend()
    _rewrite(engine, product="tensorrt-rtx")
    with pytest.raises(RuntimeBackendError, match="was built for tensorrt-rtx, and this is tensorrt"):
        open_runtime(engine, "tensorrt")
    assert machine.events == []


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "fine"),
    [
        ({"version_compatible": True}, "11.4.0", None, True),
        ({"version_compatible": True, "version": "11.4.0"}, "10.3.0", None, False),
        ({"hardware_compatibility": "ampere_plus", "compute_capabilities": ["8.6"]}, "10.3.0", L4, True),
        ({"hardware_compatibility": "none", "compute_capabilities": ["8.6"]}, "10.3.0", L4, False),
        ({"compute_capabilities": ["8.6", "8.9"]}, "10.3.0", L4, True),
    ],
)
def test_compatibility_follows_the_vendors_rules(
    changes: dict[str, Any], version: str, gpu: GpuInfo | None, fine: bool, engine: Path
) -> None:
    sidecar = _rewrite(engine, **changes)
    assert (mismatches(sidecar, product="tensorrt", version=version, gpu=gpu) == []) is fine


def test_rtx_engines_stay_with_their_release_and_default_to_ampere_and_later(engine: Path) -> None:
    sidecar = _rewrite(engine, product="tensorrt-rtx", compute_capabilities=[], version_compatible=True, version="1.7")
    turing = GpuInfo(0, "RTX 2080", "7.5", 8 << 30, False)
    assert mismatches(sidecar, product="tensorrt-rtx", version="1.8", gpu=None)
    assert mismatches(sidecar, product="tensorrt-rtx", version="1.7", gpu=L4) == []
    assert mismatches(sidecar, product="tensorrt-rtx", version="1.7", gpu=turing)


@pytest.mark.parametrize("damage", ["other plan", "shorter plan", "broken json"])
def test_a_sidecar_that_does_not_fit_is_refused(damage: str, pretend: Pretend, engine: Path) -> None:
    pretend()
    if damage == "broken json":
        sidecar_path(engine).write_text("{")
    else:
        engine.write_bytes(b"plan bytez" if damage == "other plan" else b"plan")
    with pytest.raises(RuntimeBackendError, match="sidecar"):
        open_runtime(engine)


def test_a_sidecar_of_the_first_schema_is_refused_as_that(pretend: Pretend, engine: Path) -> None:
    pretend()
    data = json.loads(sidecar_path(engine).read_text())
    data |= {"schema": 1, "provider": data.pop("product")}
    sidecar_path(engine).write_text(json.dumps(data))
    with pytest.raises(RuntimeBackendError, match="Expected engine sidecar schema 2 in .*, found 1") as refused:
        open_runtime(engine)
    assert "vitexport build-engine" in refused.value.hint


def test_a_suffix_opens_the_product_the_sidecar_names(pretend: Pretend, engine: Path) -> None:
    pretend(gpu=None)
    _rewrite(engine, product="tensorrt-rtx")
    with pytest.raises(RuntimeBackendError, match="with tensorrt-rtx needs an NVIDIA GPU"):
        open_runtime(engine)


def test_another_gpu_than_the_machine_has_is_named(pretend: Pretend, engine: Path) -> None:
    pretend()
    with pytest.raises(RuntimeBackendError, match=r"asked for cuda:3; this machine has cuda:0 \(Orin\)"):
        open_runtime(engine, options=RuntimeOptions(device="cuda:3"))
    with pytest.raises(RuntimeBackendError, match="a device such as 'cuda:0', found 'cuda:first'"):
        open_runtime(engine, options=RuntimeOptions(device="cuda:first"))


def test_an_unknown_cuda_binding_is_refused(pretend: Pretend, engine: Path) -> None:
    pretend()
    with pytest.raises(RuntimeBackendError, match="cuda-python, pycuda, found 'cupy'"):
        open_runtime(engine, options=RuntimeOptions(cuda_binding="cupy"))


def test_opening_without_a_gpu_is_refused_fast_and_without_a_crash(engine: Path) -> None:
    """In a process of its own, which a segfault would end, and against the real driver library (or its absence)."""
    if not probe_cuda().problem:
        pytest.skip("this machine has a GPU")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from vitexport.runtimes import open_runtime\n"
        "from vitexport.errors import RuntimeBackendError\n"
        "start = time.perf_counter()\n"
        "try: open_runtime(Path(sys.argv[1]))\n"
        "except RuntimeBackendError as error: print(error); print(time.perf_counter() - start); sys.exit(7)\n"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(engine)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "needs an NVIDIA GPU" in done.stdout
    assert "vitexport doctor" in done.stdout
    assert float(done.stdout.splitlines()[-1]) < 2.0
    assert time.perf_counter() - started < 20
    assert issubclass(RuntimeBackendError, VitexportError)
