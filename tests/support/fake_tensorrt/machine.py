"""A recording fake of a machine with a GPU: TensorRT's API and CUDA's runtime API, sharing device memory and one clock.

It is strict where the real thing crashes: a build without its parser, an inspector outliving its engine, device memory
freed while queued work still uses it. Queued work runs only when the stream is synchronized, so buffers that die too
early are found. ``surface`` restricts the API to what a real release has (see ``surfaces.py``); without one it is that
of a release that builds only on its own GPU, unless ``ahead_of_time`` is set.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.support.fake_tensorrt.base import Crash
from tests.support.fake_tensorrt.builder import builder_classes
from tests.support.fake_tensorrt.cuda import cuda_runtime
from tests.support.fake_tensorrt.runtime import runtime_classes

Surface = Mapping[str, Any]

_ENUMS: dict[str, tuple[str, ...]] = {
    "BuilderFlag": ("TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT", "WEIGHT_STREAMING"),
    "NetworkDefinitionCreationFlag": ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
    "ProfilingVerbosity": ("LAYER_NAMES_ONLY", "NONE", "DETAILED"),
    "MemoryPoolType": ("WORKSPACE",),
    "HardwareCompatibilityLevel": ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
    "LayerType": ("MATRIX_MULTIPLY", "CONVOLUTION", "DEQUANTIZE", "ATTENTION_INPUT"),
    "MatrixOperation": ("NONE", "TRANSPOSE", "VECTOR"),
    "TensorIOMode": ("NONE", "INPUT", "OUTPUT"),
    "LayerInformationFormat": ("ONELINE", "JSON"),
    "SerializationFlag": ("EXCLUDE_WEIGHTS", "EXCLUDE_LEAN_RUNTIME", "INCLUDE_REFIT"),
    "DataType": ("FLOAT", "HALF", "BF16", "INT8", "INT32"),
    "ComputeCapability": ("NONE", "CURRENT", "SM75", "SM86", "SM89", "SM120"),
}


class Machine:
    """Device memory, a stream, and everything that happened, in order."""

    def __init__(self, surface: Surface | None = None, *, version: str = "10.3.0", **script: Any) -> None:
        self.events: list[str] = []
        self.script: dict[str, Any] = {
            "parse": True,
            "plan": b"plan bytes",
            "engine": True,
            "context": True,
            "execute": True,
            "inspector": '{"Layers": []}',
            "missing_weights": [],
            "profiles": [((1, 4), (1, 4), (1, 4)), ((2, 4), (8, 4), (8, 4))],
            "streamable": 0,
            **script,
        }
        self.surface = surface
        self.memory: dict[int, bytearray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.queue: list[tuple[Callable[[], None], set[int]]] = []
        self.capturing: list[tuple[Callable[[], None], set[int]]] | None = None
        self.failing: set[str] = set()
        self._next = 0x1000
        self.tensorrt = _tensorrt(self, version)
        self.cudart = cuda_runtime(self)

    def address(self) -> int:
        self._next += 0x1000
        return self._next

    def enqueue(self, work: Callable[[], None], uses: set[int]) -> None:
        for address in uses:
            self.check(address)
        (self.queue if self.capturing is None else self.capturing).append((work, uses))

    def check(self, address: int) -> None:
        if address not in self.memory and address not in self.pinned:
            raise Crash(f"use of freed or unknown memory {address:#x}")

    def drain(self) -> None:
        work, self.queue = self.queue, []
        for step, uses in work:
            for address in uses:
                self.check(address)
            step()

    def order(self, *names: str) -> list[int]:
        """Positions of the first event starting with each name."""
        return [next(i for i, event in enumerate(self.events) if event.startswith(name)) for name in names]

    def count(self, name: str) -> int:
        return sum(event.startswith(name) for event in self.events)

    @property
    def live_bytes(self) -> int:
        return sum(map(len, self.memory.values())) + sum(array.nbytes for array in self.pinned.values())


def _enum(machine: Machine, name: str) -> Any:
    if machine.surface is None:
        return enum.IntEnum(name, {member: index for index, member in enumerate(_ENUMS[name])})
    members = machine.surface["enums"].get(name)
    return None if members is None else enum.IntEnum(name, members)


def _tensorrt(machine: Machine, version: str) -> Any:
    """The module: enums and classes, cut down to the surface."""
    module = SimpleNamespace(__version__=version)
    for name in _ENUMS:
        made = _enum(machine, name)
        if made is not None:
            setattr(module, name, made)

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            machine.events.append("logger")

        def log(self, severity: int, message: str) -> None:
            raise Crash("the logger must be overridden")

    for made in (ILogger, *builder_classes(machine, module), *runtime_classes(machine, module)):
        setattr(module, made.__name__, _restricted(machine, made))
    return module


def _restricted(machine: Machine, made: type) -> type:
    """Take away what the release does not have; setting an unknown attribute fails as it does in the bindings."""
    if machine.surface is None:
        if made.__name__ == "IBuilderConfig" and not machine.script.get("ahead_of_time"):
            del made.set_compute_capability  # type: ignore[attr-defined]
        return made
    allowed = set(machine.surface["classes"].get(made.__name__, ()))
    for name in [name for name in vars(made) if not name.startswith("_") and name not in allowed]:
        delattr(made, name)

    def assign(self: Any, name: str, value: Any) -> None:
        # A class of ours that derives from one of theirs may carry what it likes, as with the bindings.
        if type(self) is made and not name.startswith("_") and name not in allowed:
            raise AttributeError(f"{made.__name__} of this release has no '{name}'")
        object.__setattr__(self, name, value)

    made.__setattr__ = assign  # type: ignore[method-assign,assignment]
    return made
