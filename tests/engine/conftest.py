"""A machine with a fake GPU in place of the real one, and models in every precision."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.model_rows import Row, build, source_of
from tests.engine.fake_machine import Machine
from tests.engine.models import Variants, simplified
from vitexport.runtimes.cuda.probe import CudaState, GpuInfo
from vitexport.runtimes.tensorrt.api import load_api

ORIN = GpuInfo(0, "Orin", "8.7", 8 << 30, True)

Pretend = Callable[..., Machine]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretend]:
    """Return a function that makes this process believe in a machine with an Orin GPU and TensorRT."""

    def make(gpu: GpuInfo | None = ORIN, **arguments: Any) -> Machine:
        machine = Machine(**arguments)
        state = CudaState((gpu,), "12.6") if gpu else CudaState(problem="no NVIDIA driver", hint="Install it.")
        monkeypatch.setattr("vitexport.runtimes.cuda.probe.probe_cuda", lambda: state)
        monkeypatch.setattr("vitexport.engine.build.probe_cuda", lambda: state)
        monkeypatch.setitem(sys.modules, "tensorrt", machine.tensorrt)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", machine.cudart)
        import cuda.bindings

        monkeypatch.setattr(cuda.bindings, "runtime", machine.cudart, raising=False)
        load_api.cache_clear()
        return machine

    yield make
    load_api.cache_clear()


@pytest.fixture(scope="session")
def deit(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Variants:
    """DeiT-Tiny with its real weights, in every precision."""
    folder = tmp_path_factory.mktemp("deit")
    source = str(shared / "models" / "deit-tiny-hf")
    return Variants(folder, lambda into: simplified(source, into), shared / "data" / "imagenet-1k-sample" / "calib")


@pytest.fixture(scope="session")
def shallow(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], Variants]:
    """A shallow variant of a model row with every parameter perturbed, in every precision."""
    root = tmp_path_factory.mktemp("shallow")
    made: dict[str, Variants] = {}

    def make(row: Row) -> Variants:
        if row.name not in made:
            folder = root / row.name.replace("/", "_")
            build(row, folder / "checkpoint", shallow=True, classes=10)
            source = source_of(row, folder / "checkpoint")
            made[row.name] = Variants(
                folder, lambda into: simplified(source, into, task=row.task, image_size=row.image_size), digits
            )
        return made[row.name]

    return make
