"""Ask the CUDA driver whether there is a GPU, before any library that crashes when there is none.

TensorRT's lean and dispatch runtimes return an object on a machine without a GPU and segfault on the next call, so the
driver is asked first, through its C interface and with no Python package.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from vitexport.errors import RuntimeBackendError

__all__ = ["CudaState", "GpuInfo", "probe_cuda", "require_gpu"]

# CUdevice_attribute values of the CUDA driver API (cuda.h).
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18
_NO_DEVICE = 100


@dataclass(frozen=True)
class GpuInfo:
    """One GPU.

    Attributes:
        index: CUDA ordinal.
        name: Marketing name, e.g. ``NVIDIA L4``.
        compute_capability: E.g. ``8.7``.
        memory_bytes: Device memory; on Jetson this is the memory shared with the CPU.
        integrated: True where GPU and CPU share memory.
    """

    index: int
    name: str
    compute_capability: str
    memory_bytes: int
    integrated: bool


@dataclass(frozen=True)
class CudaState:
    """What the CUDA driver says.

    Attributes:
        gpus: The GPUs, empty when there is none to use.
        driver_version: CUDA version the driver supports, e.g. ``12.6``; empty without a driver.
        problem: Why there is no GPU to use; empty otherwise.
        hint: What to do about it.
    """

    gpus: tuple[GpuInfo, ...] = ()
    driver_version: str = ""
    problem: str = ""
    hint: str = ""


def probe_cuda(library: str | None = None) -> CudaState:
    """Ask the driver which GPUs there are. Never raises for a missing driver or GPU.

    Args:
        library: Name of the driver library; None takes the platform's.
    """
    name = library or ("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return CudaState(
            problem=f"no NVIDIA driver ({name} cannot be loaded)",
            hint="Install the NVIDIA driver; in a container start it with GPU access (--gpus all or --runtime nvidia).",
        )
    code = driver.cuInit(0)
    if code != 0:
        problem = "the NVIDIA driver sees no GPU" if code == _NO_DEVICE else f"cuInit failed with CUDA error {code}"
        return CudaState(problem=problem, hint="Check `nvidia-smi` (on Jetson `tegrastats`) and CUDA_VISIBLE_DEVICES.")
    version = ctypes.c_int()
    count = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    text = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if count.value == 0:
        return CudaState(
            driver_version=text, problem="the NVIDIA driver sees no GPU", hint="Check CUDA_VISIBLE_DEVICES."
        )
    return CudaState(tuple(_describe(driver, index) for index in range(count.value)), text)


def require_gpu(purpose: str, index: int = 0) -> GpuInfo:
    """Return a GPU.

    Raises:
        RuntimeBackendError: There is none to use; says why, as ``vitexport doctor`` does.
    """
    state = probe_cuda()
    if state.problem:
        raise RuntimeBackendError(
            f"{purpose} needs an NVIDIA GPU, but {state.problem}.",
            f"{state.hint} `vitexport doctor` shows what this machine has.",
        )
    if index >= len(state.gpus):
        found = ", ".join(f"cuda:{gpu.index} ({gpu.name})" for gpu in state.gpus)
        raise RuntimeBackendError(
            f"{purpose} asked for cuda:{index}; this machine has {found}.", "Choose one of those."
        )
    return state.gpus[index]


def _describe(driver: ctypes.CDLL, index: int) -> GpuInfo:
    device = ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    memory = ctypes.c_size_t()
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    return GpuInfo(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=f"{attribute(_MAJOR)}.{attribute(_MINOR)}",
        memory_bytes=memory.value,
        integrated=attribute(_INTEGRATED) == 1,
    )
