"""What this machine can do: packages, GPUs, CPU features, runtimes that open, and what to install for the rest.

GPUs come from :mod:`vitexport.runtimes.cuda.probe`, and how a runtime is checked from its adapter.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from vitexport.device.profiles import precisions_of
from vitexport.files import finite
from vitexport.machine import cpu_features, processor_name, usable_cores
from vitexport.runtimes import adapter_class, available_runtimes
from vitexport.runtimes.base import RuntimePackage
from vitexport.runtimes.cuda.probe import CudaState, GpuInfo, probe_cuda
from vitexport.tables import Table, Tabular

__all__ = ["MachineDiagnosis", "Package", "RuntimeCheck", "diagnose_machine"]

# package -> (extra that brings it, what it is for); those that a runtime stands on are its adapter's to name
_PACKAGES = {
    "numpy": ("", "tensors"),
    "Pillow": ("", "images"),
    "transformers": ("host", "Hugging Face models"),
    "timm": ("host", "timm models"),
    "onnx": ("host", "export"),
    "onnx-ir": ("host", "graph passes"),
    "onnxsim": ("host", "simplification"),
    "cuda-python": ("tensorrt", "device memory"),
    "pycuda": ("pycuda", "device memory on JetPack"),
    "Jinja2": ("report", "HTML reports"),
    "matplotlib": ("report", "plots in reports"),
}


@dataclass(frozen=True)
class Package:
    """An installed or missing package; ``version`` is None when missing, ``install`` says how to get it."""

    name: str
    purpose: str
    version: str | None
    install: str


@dataclass(frozen=True)
class RuntimeCheck:
    """Whether a runtime can open a model here, and why not."""

    name: str
    usable: bool
    note: str


@dataclass(frozen=True, repr=False)
class MachineDiagnosis(Tabular):
    """Everything :func:`diagnose_machine` finds out.

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
    gpus: tuple[GpuInfo, ...]
    cuda: str
    packages: tuple[Package, ...]
    runtimes: tuple[RuntimeCheck, ...]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        content: dict[str, Any] = finite(asdict(self))
        return content

    def tables(self) -> tuple[Table, ...]:
        """Return the machine itself, then ``packages`` and ``runtimes``, and the advice, if any."""
        packages = tuple(
            (package.name, package.version or "-", package.purpose, "" if package.version else package.install)
            for package in self.packages
        )
        runtimes = tuple((runtime.name, _mark(runtime.usable), runtime.note) for runtime in self.runtimes)
        advice = Table("advice", ("what follows",), tuple((line,) for line in self.advice))
        return (
            Table("machine", ("fact", "value"), tuple(self._facts()), text=("value",)),
            _text_table("packages", ("package", "version", "for", "install with"), packages),
            _text_table("runtimes", ("runtime", "opens", "note"), runtimes),
            *((advice,) if self.advice else ()),
        )

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "system", self.system
        yield "Python", self.python
        yield "processor", self.cpu
        yield "cores", str(self.cores)
        yield "CPU features", ", ".join(f"{name} {_mark(value)}" for name, value in self.cpu_features.items())
        if not self.gpus:
            yield "GPUs", f"none, {self.cuda}"
        for gpu in self.gpus:
            memory = f"{gpu.memory_bytes / 2**30:.0f} GiB"
            yield "GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}, {self.cuda}"


def _text_table(title: str, columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> Table:
    return Table(title, columns, rows, text=columns)


def _mark(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "no"


def diagnose_machine() -> MachineDiagnosis:
    """Examine this machine; runtimes are opened in processes of their own, so that a broken one crashes only that."""
    features = cpu_features()
    state = probe_cuda()
    runtimes = {name: adapter_class(name).package for name in available_runtimes()}
    return MachineDiagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=processor_name(),
        cores=usable_cores(),
        cpu_features=features,
        gpus=state.gpus,
        cuda=state.problem or f"driver for CUDA {state.driver_version}",
        packages=tuple(_packages(runtimes.values())),
        runtimes=tuple(_check(name, package, state) for name, package in runtimes.items()),
        advice=tuple(_advice(features, state.gpus)),
    )


def _packages(runtimes: Iterable[RuntimePackage]) -> Iterator[Package]:
    for name, (extra, purpose) in _PACKAGES.items():
        yield _package(name, extra, purpose, _version(name))
    for package in runtimes:
        yield _package(package.name, package.extra, package.purpose, _runtime_version(package))


def _package(name: str, extra: str, purpose: str, version: str | None) -> Package:
    return Package(name, purpose, version, f"pip install 'vitexport[{extra}]'" if extra else "pip install vitexport")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _runtime_version(package: RuntimePackage) -> str | None:
    """Return the version of a runtime's package; ``system`` where only its module is there, as JetPack installs it."""
    return _version(package.name) or ("system" if importlib.util.find_spec(package.module) is not None else None)


def _check(name: str, package: RuntimePackage, state: CudaState) -> RuntimeCheck:
    if _runtime_version(package) is None:
        return RuntimeCheck(name, False, f"package '{package.name}' is not installed")
    if package.needs_gpu and not state.gpus:
        besides = f"; {package.without_gpu}" if package.without_gpu else ""
        return RuntimeCheck(name, False, f"{state.problem}{besides}")
    return _run_program(name, package.program)


def _run_program(name: str, program: str) -> RuntimeCheck:
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return RuntimeCheck(name, False, "did not open within 120 s")
    if done.returncode == 0:
        return RuntimeCheck(name, True, done.stdout.strip())
    lines = done.stderr.strip().splitlines()
    return RuntimeCheck(name, False, lines[-1] if lines else f"the process ended with code {done.returncode}")


def _advice(features: dict[str, bool | None], gpus: tuple[GpuInfo, ...]) -> Iterator[str]:
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
        precisions = precisions_of(gpu.compute_capability)
        if "fp8" in precisions:
            yield f"{gpu.name}: int8 and fp8 run on tensor cores. Quantize with target tensorrt."
        elif "int8" in precisions:
            yield f"{gpu.name}: int8 runs on tensor cores, fp8 does not. Quantize with target tensorrt."
