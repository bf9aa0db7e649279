"""The one seam through which device memory, copies, streams and CUDA graphs go.

Two CUDA bindings stand behind it, each in a module of its own: pycuda, the usual choice on JetPack, and NVIDIA's
cuda-python.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from vitexport.errors import MissingDependencyError, RuntimeBackendError
from vitexport.tensors import Array

__all__ = ["CudaMemory", "open_memory"]

# name -> (module that must be importable, our module:class, package, extra)
_BINDINGS: dict[str, tuple[str, str, str, str]] = {
    "cuda-python": (
        "cuda.bindings.runtime",
        "vitexport.runtimes.cuda.cuda_python:CudaPythonMemory",
        "cuda-python",
        "tensorrt",
    ),
    "pycuda": ("pycuda.driver", "vitexport.runtimes.cuda.pycuda:PyCudaMemory", "pycuda", "pycuda"),
}


class CudaMemory(Protocol):
    """Device memory of one GPU and one stream. Addresses and handles are plain integers, as TensorRT takes them.

    Every method raises :class:`~vitexport.errors.InferenceError` when CUDA reports an error.
    """

    name: str

    @property
    def stream(self) -> int:
        """Handle of the stream everything is ordered on."""

    def active(self) -> AbstractContextManager[None]:
        """Make the GPU current on the calling thread for the block."""

    def allocate(self, nbytes: int) -> int:
        """Return the address of ``nbytes`` of device memory."""

    def free(self, address: int) -> None:
        """Free device memory."""

    def allocate_pinned(self, nbytes: int) -> Array:
        """Return ``uint8[nbytes]`` in page-locked host memory, valid until :meth:`free_pinned`."""

    def free_pinned(self, array: Array) -> None:
        """Free page-locked memory; no view of it may be used afterwards."""

    def upload(self, address: int, pinned: Array, nbytes: int) -> None:
        """Queue a copy of the first ``nbytes`` of page-locked memory to the device."""

    def download(self, pinned: Array, address: int, nbytes: int) -> None:
        """Queue a copy of ``nbytes`` from the device to page-locked memory."""

    def synchronize(self) -> None:
        """Wait until everything queued is done."""

    def begin_capture(self) -> None:
        """Record what is queued from here on into a graph instead of running it."""

    def end_capture(self) -> Any:
        """Stop recording and return an executable graph."""

    def launch(self, graph: Any) -> None:
        """Queue a graph."""

    def destroy_graph(self, graph: Any) -> None:
        """Release a graph."""

    def close(self) -> None:
        """Release the stream."""


class _Opens(Protocol):
    def open(self, device: int) -> CudaMemory: ...


def open_memory(device: int = 0, binding: str | None = None) -> CudaMemory:
    """Open the memory of a GPU; the caller has made sure that there is one.

    Args:
        device: CUDA ordinal.
        binding: ``cuda-python`` or ``pycuda``; None takes the first that is installed.

    Raises:
        RuntimeBackendError: No such CUDA binding, or CUDA refuses the device.
        MissingDependencyError: The CUDA binding (or, without a choice, any) is not installed.
    """
    if binding is not None and binding not in _BINDINGS:
        raise RuntimeBackendError(
            f"Expected a CUDA binding of {', '.join(_BINDINGS)}, found '{binding}'.", "Choose one of those."
        )
    for vendor, ours, _, _ in [_BINDINGS[binding]] if binding else _BINDINGS.values():
        try:
            importlib.import_module(vendor)
        except ImportError:
            continue
        module, _, attribute = ours.partition(":")
        return cast(_Opens, getattr(importlib.import_module(module), attribute)).open(device)
    _, _, package, extra = _BINDINGS[binding or "cuda-python"]
    raise MissingDependencyError(package, extra, "Device memory")
