"""The CUDA probe against a driver library made for the test, and the pycuda side of the memory seam."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitexport.errors import InferenceError, MissingDependencyError, RuntimeBackendError
from vitexport.runtimes.cuda import open_memory, probe_cuda, require_gpu
from vitexport.runtimes.cuda.probe import GpuInfo

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = 10 + index; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 10 ? "Orin" : "L4", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device == 10 ? 7990000000ULL : 24000000000ULL; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int orin = device == 10;
    *value = attribute == 75 ? 8 : attribute == 76 ? (orin ? 7 : 9) : attribute == 18 ? orin : -1; return 0; }
"""


def _driver(folder: Path, *, init: int = 0, count: int = 2) -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a driver library with")
    source = folder / "driver.c"
    source.write_text(DRIVER.replace("INIT", str(init)).replace("COUNT", str(count)))
    library = folder / "libcuda_made_for_a_test.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return str(library)


def test_probe_reads_every_gpu(tmp_path: Path) -> None:
    state = probe_cuda(_driver(tmp_path))
    assert state.problem == ""
    assert state.driver_version == "12.6"
    assert state.gpus == (
        GpuInfo(0, "Orin", "8.7", 7_990_000_000, True),
        GpuInfo(1, "L4", "8.9", 24_000_000_000, False),
    )


@pytest.mark.parametrize(
    ("init", "count", "problem"),
    [(100, 0, "the NVIDIA driver sees no GPU"), (999, 0, "cuInit failed with CUDA error 999"), (0, 0, "sees no GPU")],
)
def test_a_driver_without_a_gpu_is_explained(init: int, count: int, problem: str, tmp_path: Path) -> None:
    state = probe_cuda(_driver(tmp_path, init=init, count=count))
    assert problem in state.problem
    assert state.hint
    assert state.gpus == ()


def test_no_driver_is_explained() -> None:
    state = probe_cuda("libcuda_that_is_nowhere.so")
    assert "no NVIDIA driver" in state.problem
    assert state.gpus == ()


def test_require_gpu_says_what_doctor_says(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = probe_cuda("libcuda_that_is_nowhere.so")
    monkeypatch.setattr("vitexport.runtimes.cuda.probe.probe_cuda", lambda: absent)
    with pytest.raises(RuntimeBackendError, match="Testing needs an NVIDIA GPU, but no NVIDIA driver"):
        require_gpu("Testing")


class _PyCuda:
    """pycuda.driver as far as the seam uses it, with a context stack per thread as pycuda has."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.stack: list[str] = []
        self.fail = ""
        self.Error = type("Error", (Exception,), {})
        driver = self

        class Context:
            def push(self) -> None:
                driver.stack.append("primary")

            @staticmethod
            def pop() -> None:
                driver.stack.pop()

            def detach(self) -> None:
                driver.events.append("detach")

        class Stream:
            handle = 99

            def synchronize(self) -> None:
                driver.note("synchronize")

        class Allocation(int):
            def free(self) -> None:
                driver.note("free")

        self.Context = Context
        self.Stream = Stream
        self._allocation = Allocation
        self.Device = lambda index: SimpleNamespace(retain_primary_context=Context)

    def note(self, event: str) -> None:
        assert self.stack, f"{event} without a current context"
        if event == self.fail:
            raise self.Error("out of memory")
        self.events.append(event)

    def init(self) -> None:
        self.events.append("init")

    def mem_alloc(self, nbytes: int) -> Any:
        self.note("mem_alloc")
        return self._allocation(4096)

    def pagelocked_empty(self, shape: int, dtype: Any) -> Any:
        self.note("pagelocked_empty")
        driver = self

        class Owner(np.ndarray[Any, Any]):
            def free(self) -> None:
                driver.note("free pinned")

        return np.empty(shape, dtype).view(Owner)[:]

    def memcpy_htod_async(self, address: int, array: Any, stream: Any) -> None:
        assert array.nbytes == 8
        self.note(f"up {address}")

    def memcpy_dtoh_async(self, array: Any, address: int, stream: Any) -> None:
        assert array.nbytes == 8
        self.note(f"down {address}")


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> _PyCuda:
    fake = _PyCuda()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=fake))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    return fake


def test_pycuda_works_in_the_primary_context_and_leaves_none_behind(pycuda: _PyCuda) -> None:
    memory = open_memory(0, "pycuda")
    assert memory.name == "pycuda"
    assert memory.stream == 99
    with memory.active():
        address = memory.allocate(16)
        pinned = memory.allocate_pinned(16)
        memory.upload(address, pinned, 8)
        memory.download(pinned, address, 8)
        memory.synchronize()
        memory.free(address)
        memory.free_pinned(pinned)
    memory.close()
    memory.close()
    assert pycuda.stack == []
    assert pycuda.events == [
        "init", "mem_alloc", "pagelocked_empty", "up 4096", "down 4096", "synchronize", "free", "free pinned", "detach",
    ]  # fmt: skip


def test_pycuda_errors_become_ours(pycuda: _PyCuda) -> None:
    memory = open_memory(0, "pycuda")
    pycuda.fail = "mem_alloc"
    with memory.active(), pytest.raises(InferenceError, match="cuMemAlloc failed: out of memory"):
        memory.allocate(16)
    assert pycuda.stack == []


def test_pycuda_refuses_cuda_graphs_in_words(pycuda: _PyCuda) -> None:
    memory = open_memory(0, "pycuda")
    with memory.active(), pytest.raises(InferenceError, match="need cuda-python"):
        memory.begin_capture()


def test_without_a_cuda_binding_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependencyError, match="cuda-python"):
        open_memory()
    with pytest.raises(MissingDependencyError, match="vitexport\\[pycuda\\]"):
        open_memory(binding="pycuda")
