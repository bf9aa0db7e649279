"""A machine with a fake GPU in place of the real one; the fixture is known to all tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.fake_tensorrt.machine import Machine
from vitexport.runtimes.cuda.probe import CudaState, GpuInfo
from vitexport.runtimes.tensorrt.api import load_api

__all__ = ["ORIN", "Pretend", "pretend"]

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
