"""Device memory through NVIDIA's cuda-python (``cuda.bindings.runtime``)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vitexport.errors import InferenceError
from vitexport.tensors import Array

__all__ = ["CudaPythonMemory"]


class CudaPythonMemory:
    """See :class:`vitexport.runtimes.cuda.memory.CudaMemory`."""

    name = "cuda-python"

    def __init__(self, runtime: Any, device: int) -> None:
        self._runtime = runtime
        self._device = device
        self._call("cudaSetDevice", device)
        self._stream: Any = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self._pinned: dict[int, int] = {}

    @classmethod
    def open(cls, device: int) -> CudaPythonMemory:
        """Open a GPU."""
        from cuda.bindings import runtime

        return cls(runtime, device)

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The runtime API keeps one current device per thread."""
        self._call("cudaSetDevice", self._device)
        yield

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory."""
        return int(self._call("cudaMalloc", nbytes))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cudaFree", address)

    def allocate_pinned(self, nbytes: int) -> Array:
        """Allocate page-locked memory."""
        address = int(self._call("cudaHostAlloc", nbytes, self._runtime.cudaHostAllocDefault))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        self._pinned[array.ctypes.data] = address
        return array

    def free_pinned(self, array: Array) -> None:
        """Free page-locked memory."""
        self._call("cudaFreeHost", self._pinned.pop(array.ctypes.data))

    def upload(self, address: int, pinned: Array, nbytes: int) -> None:
        """Queue a copy to the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, pinned.ctypes.data, nbytes, kind, self._stream)

    def download(self, pinned: Array, address: int, nbytes: int) -> None:
        """Queue a copy to the host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", pinned.ctypes.data, address, nbytes, kind, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """Start recording a graph; thread-local, so that other threads may allocate meanwhile."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Any:
        """Stop recording; the executable graph no longer needs the recording."""
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Queue a graph."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def destroy_graph(self, graph: Any) -> None:
        """Release a graph."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Release the stream; calling it twice is fine."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            self._call("cudaStreamDestroy", stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the runtime API, whose functions return (error, results...)."""
        error, *results = getattr(self._runtime, function)(*arguments)
        if int(error) != 0:
            raise InferenceError(
                f"{function} failed: {getattr(error, 'name', error)}.",
                "Free device memory if it is an out-of-memory error; `vitexport doctor` shows what this machine has.",
            )
        return results[0] if results else None
