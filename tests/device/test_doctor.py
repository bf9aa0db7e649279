"""The doctor: GPUs from the one probe, runtimes from their adapters, and no crash of a broken installation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vitexport.device.doctor import MachineDiagnosis, RuntimeCheck, diagnose_machine
from vitexport.machine import usable_cores
from vitexport.runtimes import adapter_class, available_runtimes
from vitexport.runtimes.base import RuntimePackage
from vitexport.runtimes.cuda.probe import CudaState, GpuInfo
from vitexport.runtimes.onnxruntime import OnnxRuntime

Diagnose = Callable[..., MachineDiagnosis]

NO_DRIVER = CudaState(problem="no NVIDIA driver (libcuda.so.1 cannot be loaded)", hint="Install it.")


def _package(program: str, *, module: str = "json", needs_gpu: bool = False, without_gpu: str = "") -> RuntimePackage:
    return RuntimePackage("numpy", module, "ort", "running models", program, needs_gpu, without_gpu)


@pytest.fixture
def diagnose(monkeypatch: pytest.MonkeyPatch) -> Diagnose:
    """Return a function that examines a machine with these GPUs and with one runtime, which stands on ``package``."""

    def make(package: RuntimePackage, state: CudaState = NO_DRIVER) -> MachineDiagnosis:
        monkeypatch.setattr("vitexport.device.doctor.probe_cuda", lambda: state)
        monkeypatch.setattr("vitexport.device.doctor.available_runtimes", lambda: ("onnxruntime",))
        monkeypatch.setattr(OnnxRuntime, "package", package)
        return diagnose_machine()

    return make


def test_every_runtime_says_how_it_is_checked_without_its_package() -> None:
    packages = {name: adapter_class(name).package for name in available_runtimes()}
    assert {name: package.name for name, package in packages.items()} == {
        "onnxruntime": "onnxruntime",
        "tensorrt": "tensorrt",
        "tensorrt-rtx": "tensorrt-rtx-cu13",
        "pytorch": "torch",
    }
    for package in packages.values():
        compile(package.program, package.name, "exec")


def test_only_onnx_runtime_runs_on_several_threads_at_once() -> None:
    assert [name for name in available_runtimes() if adapter_class(name).concurrent] == ["onnxruntime"]


def test_gpus_are_those_of_the_probe(diagnose: Diagnose) -> None:
    gpus = (GpuInfo(0, "Orin", "8.7", 8 << 30, True), GpuInfo(1, "L4", "8.9", 24 << 30, False))
    machine = diagnose(_package("print('ok')", needs_gpu=True), CudaState(gpus, "12.6"))
    assert machine.gpus == gpus
    assert machine.cuda == "driver for CUDA 12.6"
    assert [line for line in machine.advice if "tensor cores" in line] == [
        "Orin: int8 runs on tensor cores, fp8 does not. Quantize with target tensorrt.",
        "L4: int8 and fp8 run on tensor cores. Quantize with target tensorrt.",
    ]
    assert machine.runtimes == (RuntimeCheck("onnxruntime", True, "ok"),)
    assert machine.cores == usable_cores()


def test_a_runtime_that_needs_a_gpu_is_not_started_without_one(diagnose: Diagnose, tmp_path: Path) -> None:
    started = tmp_path / "started"
    machine = diagnose(_package(f"open({str(started)!r}, 'w')", needs_gpu=True, without_gpu="builds engines"))
    assert machine.runtimes == (RuntimeCheck("onnxruntime", False, f"{NO_DRIVER.problem}; builds engines"),)
    assert machine.gpus == () and machine.cuda == NO_DRIVER.problem
    assert not started.exists()


@pytest.mark.parametrize(
    ("program", "note"),
    [
        ("raise OSError('libcudnn.so.9 is missing')", "OSError: libcudnn.so.9 is missing"),
        ("import os; os.kill(os.getpid(), 11)", "the process ended with code -11"),
    ],
)
def test_a_broken_runtime_is_named_and_crashes_only_its_own_process(
    program: str, note: str, diagnose: Diagnose
) -> None:
    assert diagnose(_package(program)).runtimes == (RuntimeCheck("onnxruntime", False, note),)


def test_a_package_that_is_not_there_comes_with_its_install_line(diagnose: Diagnose) -> None:
    absent = RuntimePackage("no-such-package", "no_such_module", "ort", "running models", "print()")
    machine = diagnose(absent)
    assert machine.runtimes == (RuntimeCheck("onnxruntime", False, "package 'no-such-package' is not installed"),)
    entry = next(package for package in machine.packages if package.name == "no-such-package")
    assert (entry.version, entry.install) == (None, "pip install 'vitexport[ort]'")


def test_a_module_without_package_metadata_counts_as_installed(
    diagnose: Diagnose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jetpacks_module.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    package = RuntimePackage("no-such-package", "jetpacks_module", "ort", "running models", "print('opened')")
    machine = diagnose(package)
    assert machine.runtimes == (RuntimeCheck("onnxruntime", True, "opened"),)
    assert next(entry.version for entry in machine.packages if entry.name == "no-such-package") == "system"
