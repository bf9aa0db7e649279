"""Device memory through pycuda, the usual choice on JetPack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vitexport.errors import InferenceError
from vitexport.tensors import Array

__all__ = ["PyCudaMemory"]


class PyCudaMemory:
    """See :class:`vitexport.runtimes.cuda.memory.CudaMemory`.

    Uses the device's primary context, the one TensorRT uses; a context of our own would hide our memory from it. pycuda
    keeps a stack of contexts per thread, so :meth:`active` pushes and pops.
    """

    name = "pycuda"

    def __init__(self, driver: Any, device: int) -> None:
        self._driver = driver
        with self._mapped("cuInit"):
            driver.init()
            self._context: Any = driver.Device(device).retain_primary_context()
        self._allocations: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        with self.active(), self._mapped("cuStreamCreate"):
            self._stream: Any = driver.Stream()

    @classmethod
    def open(cls, device: int) -> PyCudaMemory:
        """Open a GPU."""
        import pycuda.driver as driver

        return cls(driver, device)

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream.handle)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Push the context on this thread's stack for the block."""
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory."""
        with self._mapped("cuMemAlloc"):
            allocation = self._driver.mem_alloc(nbytes)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        """Free device memory."""
        with self._mapped("cuMemFree"):
            self._allocations.pop(address).free()

    def allocate_pinned(self, nbytes: int) -> Array:
        """Allocate page-locked memory; pycuda frees it with the array's base."""
        with self._mapped("cuMemHostAlloc"):
            array: Array = self._driver.pagelocked_empty(nbytes, np.uint8)
        self._pinned[array.ctypes.data] = array
        return array

    def free_pinned(self, array: Array) -> None:
        """Free page-locked memory."""
        with self._mapped("cuMemFreeHost"):
            self._pinned.pop(array.ctypes.data).base.free()

    def upload(self, address: int, pinned: Array, nbytes: int) -> None:
        """Queue a copy to the device."""
        with self._mapped("cuMemcpyHtoDAsync"):
            self._driver.memcpy_htod_async(address, pinned[:nbytes], self._stream)

    def download(self, pinned: Array, address: int, nbytes: int) -> None:
        """Queue a copy to the host."""
        with self._mapped("cuMemcpyDtoHAsync"):
            self._driver.memcpy_dtoh_async(pinned[:nbytes], address, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream."""
        with self._mapped("cuStreamSynchronize"):
            self._stream.synchronize()

    def begin_capture(self) -> None:
        """pycuda has no stable interface for CUDA graphs."""
        raise InferenceError(
            "CUDA graphs need cuda-python; this runtime was opened with pycuda.",
            "Install cuda-python and open the engine with the CUDA binding 'cuda-python'.",
        )

    def end_capture(self) -> Any:
        """Never reached: :meth:`begin_capture` refuses."""
        return self.begin_capture()

    def launch(self, graph: Any) -> None:
        """Never reached: :meth:`begin_capture` refuses."""
        self.begin_capture()

    def destroy_graph(self, graph: Any) -> None:
        """There is no graph to release."""

    def close(self) -> None:
        """Release the stream and the hold on the primary context; calling it twice is fine."""
        if self._stream is not None:
            with self.active():
                self._stream = None
            context, self._context = self._context, None
            context.detach()

    @contextmanager
    def _mapped(self, function: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise InferenceError(
                f"{function} failed: {error}.",
                "Free device memory if it is an out-of-memory error; `vitexport doctor` shows what this machine has.",
            ) from error
