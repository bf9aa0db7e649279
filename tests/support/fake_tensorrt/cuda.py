"""The fake of ``cuda.bindings.runtime``: device memory, one stream whose work runs when it is synchronized, graphs."""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.fake_tensorrt.base import Crash

if TYPE_CHECKING:
    from tests.support.fake_tensorrt.machine import Machine


def cuda_runtime(machine: Machine) -> Any:
    """``cuda.bindings.runtime``: every function returns a tuple that starts with the error."""

    class Error(enum.IntEnum):
        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2

    def function(name: str, work: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if name in machine.failing:
                return (Error.cudaErrorMemoryAllocation, None)
            machine.events.append(name)
            result = work(*arguments)
            if isinstance(result, tuple):
                return (Error.cudaSuccess, *result)
            return (Error.cudaSuccess,) if result is None else (Error.cudaSuccess, result)

        return call

    def malloc(nbytes: int) -> int:
        address = machine.address()
        machine.memory[address] = bytearray(nbytes)
        return address

    def free(address: int) -> None:
        if any(address in uses for _, uses in machine.queue):
            raise Crash("device memory freed while queued work uses it")
        del machine.memory[address]

    def host_alloc(nbytes: int, flags: int) -> int:
        array = np.zeros(nbytes, np.uint8)
        machine.pinned[array.ctypes.data] = array
        return int(array.ctypes.data)

    def host_free(address: int) -> None:
        if any(address in uses for _, uses in machine.queue):
            raise Crash("host memory freed while queued work uses it")
        del machine.pinned[address]

    def copy(target: int, source: int, nbytes: int, kind: str, stream: int) -> None:
        def work() -> None:
            if kind == "up":
                machine.memory[target][:nbytes] = machine.pinned[source][:nbytes].tobytes()
            else:
                machine.pinned[target][:nbytes] = np.frombuffer(machine.memory[source], np.uint8, nbytes)

        machine.enqueue(work, {target, source})

    def begin(stream: int, mode: str) -> None:
        machine.capturing = []

    def end(stream: int) -> Any:
        graph, machine.capturing = machine.capturing, None
        return graph

    def launch(graph: Any, stream: int) -> None:
        for work, uses in graph:
            machine.enqueue(work, uses)

    functions: dict[str, Callable[..., Any]] = {
        "cudaSetDevice": lambda device: None,
        "cudaStreamCreateWithFlags": lambda flags: 42,
        "cudaStreamDestroy": lambda stream: None,
        "cudaStreamSynchronize": lambda stream: machine.drain(),
        "cudaMalloc": malloc,
        "cudaFree": free,
        "cudaHostAlloc": host_alloc,
        "cudaFreeHost": host_free,
        "cudaMemcpyAsync": copy,
        "cudaStreamBeginCapture": begin,
        "cudaStreamEndCapture": end,
        "cudaGraphInstantiate": lambda graph, flags: graph,
        "cudaGraphDestroy": lambda graph: None,
        "cudaGraphLaunch": launch,
        "cudaGraphExecDestroy": lambda graph: None,
        "cudaMemGetInfo": lambda: (machine.live_bytes, 8 << 30),
    }
    return SimpleNamespace(
        cudaStreamNonBlocking=1,
        cudaHostAllocDefault=0,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down"),
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread"),
        **{name: function(name, work) for name, work in functions.items()},
    )
