"""What this machine can do: packages, GPUs, CPU features, runtimes that open, and what to install for the rest."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Diagnosis", "Gpu", "Package", "RuntimeCheck", "examine"]

# package -> (extra that brings it, what it is for)
_PACKAGES = {
    "numpy": ("", "tensors"),
    "Pillow": ("", "images"),
    "torch": ("host", "export"),
    "transformers": ("host", "Hugging Face models"),
    "timm": ("host", "timm models"),
    "onnx": ("host", "export"),
    "onnx-ir": ("host", "graph passes"),
    "onnxsim": ("host", "simplification"),
    "onnxruntime": ("ort", "running ONNX models"),
    "tensorrt": ("tensorrt", "engines for NVIDIA servers and Jetson"),
    "tensorrt-rtx-cu13": ("tensorrt-rtx", "engines for RTX, built without a GPU"),
    "cuda-python": ("tensorrt", "device memory"),
    "pycuda": ("pycuda", "device memory on JetPack"),
    "Jinja2": ("report", "HTML reports"),
    "matplotlib": ("report", "plots in reports"),
}

# What the int8 kernels of ONNX Runtime's MLAS look for; the names are those of /proc/cpuinfo on Linux.
_CPU_FEATURES = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX int8": ("amx_int8",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "fp16 arithmetic": ("avx512_fp16", "asimdhp"),
}


@dataclass(frozen=True)
class Package:
    """An installed or missing package; ``version`` is None when missing, ``install`` says how to get it."""

    name: str
    purpose: str
    version: str | None
    install: str


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: compute capability as (major, minor), memory in bytes."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True)
class RuntimeCheck:
    """Whether a runtime can open a model here, and why not."""

    name: str
    usable: bool
    note: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything :func:`examine` found.

    Attributes:
        python: Version of the interpreter.
        system: Operating system and architecture.
        cpu: Processor name.
        cores: Logical cores this process may use.
        cpu_features: Feature to whether the CPU has it; None where it cannot be told.
        gpus: CUDA devices.
        cuda: What the CUDA driver said.
        packages: What is installed and what is not.
        runtimes: Which runtimes open.
        advice: What follows for quantization targets.
    """

    python: str
    system: str
    cpu: str
    cores: int
    cpu_features: dict[str, bool | None]
    gpus: tuple[Gpu, ...]
    cuda: str
    packages: tuple[Package, ...]
    runtimes: tuple[RuntimeCheck, ...]
    advice: tuple[str, ...]


def examine() -> Diagnosis:
    """Examine this machine; runtimes are opened in processes of their own, so that a broken one crashes only that."""
    name, features = _cpu()
    gpus, cuda = _gpus()
    packages = tuple(_package(package, *facts) for package, facts in _PACKAGES.items())
    runtimes = tuple(_runtimes({package.name for package in packages if package.version}, gpus, cuda))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=name,
        cores=cores,
        cpu_features=features,
        gpus=gpus,
        cuda=cuda,
        packages=packages,
        runtimes=runtimes,
        advice=tuple(_advice(features, gpus)),
    )


def _package(name: str, extra: str, purpose: str) -> Package:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    if version is None and name == "tensorrt" and importlib.util.find_spec("tensorrt") is not None:
        version = "system"  # JetPack installs the module without package metadata
    return Package(name, purpose, version, f"pip install 'vitexport[{extra}]'" if extra else "pip install vitexport")


def _cpu() -> tuple[str, dict[str, bool | None]]:
    """Return the processor's name and features, from /proc/cpuinfo where there is one."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or "unknown", dict.fromkeys(_CPU_FEATURES)
    fields: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    name = fields.get("model name") or platform.machine()
    return name, {feature: any(flag in flags for flag in names) for feature, names in _CPU_FEATURES.items()}


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """Ask the CUDA driver library directly: unlike an engine runtime it never crashes without a device."""
    library = ctypes.util.find_library("cuda") or ("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return (), "no CUDA driver"
    status = cuda.cuInit(0)
    if status != 0:
        return (), f"cuInit failed with error {status}"
    count, version = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    cuda.cuDriverGetVersion(ctypes.byref(version))
    gpus = tuple(_gpu(cuda, index) for index in range(count.value))
    return gpus, f"driver for CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(128)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR (cuda.h)
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value)


# runtime -> (package, program that opens it); run in a process of its own, because a broken installation may crash
_PROBES = {
    "onnxruntime": ("onnxruntime", "import onnxruntime as m; print(', '.join(m.get_available_providers()))"),
    "pytorch": ("torch", "import torch as m; print('CUDA' if m.cuda.is_available() else 'CPU')"),
    "tensorrt": ("tensorrt", "import tensorrt as m; assert m.Runtime(m.Logger(m.Logger.ERROR)); print(m.__version__)"),
    "tensorrt-rtx": (
        "tensorrt-rtx-cu13",
        "import tensorrt_rtx as m; assert m.Runtime(m.Logger(m.Logger.ERROR)); print(m.__version__)",
    ),
}


def _runtimes(installed: set[str], gpus: tuple[Gpu, ...], cuda: str) -> Iterator[RuntimeCheck]:
    for name, (package, program) in _PROBES.items():
        if package not in installed:
            yield RuntimeCheck(name, False, f"package '{package}' is not installed")
        elif name.startswith("tensorrt") and not gpus:
            builds = "; builds engines without one" if name == "tensorrt-rtx" else ""
            yield RuntimeCheck(name, False, f"no NVIDIA GPU ({cuda}){builds}")
        else:
            yield _probe(name, program)


def _probe(name: str, program: str) -> RuntimeCheck:
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return RuntimeCheck(name, False, "did not open within 120 s")
    if done.returncode == 0:
        return RuntimeCheck(name, True, done.stdout.strip())
    lines = done.stderr.strip().splitlines()
    return RuntimeCheck(name, False, lines[-1] if lines else f"the process ended with code {done.returncode}")


def _advice(features: dict[str, bool | None], gpus: tuple[Gpu, ...]) -> Iterator[str]:
    if features.get("AVX2") and not features.get("VNNI"):
        yield (
            "This CPU has AVX2 but no VNNI: uint8 x int8 products saturate in 16 bits. Quantize with target ort-x86, "
            "which avoids it."
        )
    elif features.get("VNNI"):
        yield "This CPU has VNNI: int8 runs fast and exact. Quantize with target ort-x86."
    elif features.get("dotprod"):
        yield "This CPU has the dot-product extension. Quantize with target ort-arm64."
    for gpu in gpus:
        major, minor = gpu.compute_capability
        if (major, minor) >= (8, 9):
            yield f"{gpu.name}: int8 and fp8 run on tensor cores. Quantize with target tensorrt."
        elif (major, minor) >= (7, 2):
            yield f"{gpu.name}: int8 runs on tensor cores, fp8 does not. Quantize with target tensorrt."
