"""Execution contexts: one run of an engine, with the buffers it reads and writes and the CUDA graph it replays.

Only what happens per execution context, and the inputs and outputs an engine declares; which context a call gets is
decided in :mod:`vitexport.runtimes.tensorrt.runtime`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from vitexport.errors import InferenceError, RuntimeBackendError
from vitexport.runtimes.cuda.memory import CudaMemory
from vitexport.runtimes.tensorrt.api import TensorRTApi
from vitexport.runtimes.tensorrt.sidecar import EngineSidecar
from vitexport.tensors import Array, TensorSpec

__all__ = ["ExecutionContext", "io_specs"]

# TensorRT's DataType names and what NumPy calls them. NumPy has no bfloat16 or fp8.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class _Buffer:
    """Device memory and its page-locked twin, grown when needed and never shrunk."""

    def __init__(self, memory: CudaMemory) -> None:
        self._memory = memory
        self.address = 0
        self.pinned: Array | None = None
        self.capacity = 0

    def reserve(self, nbytes: int) -> bool:
        """Make room; True if the address changed."""
        if nbytes <= self.capacity:
            return False
        self.release()
        self.address = self._memory.allocate(nbytes)
        self.pinned = self._memory.allocate_pinned(nbytes)
        self.capacity = nbytes
        return True

    def view(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        """Return the page-locked memory as an array of that shape."""
        assert self.pinned is not None
        dtype = np.dtype(spec.dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        return self.pinned[:nbytes].view(dtype).reshape(shape)

    def release(self) -> None:
        """Free both."""
        address, pinned = self.address, self.pinned
        self.address, self.pinned, self.capacity = 0, None, 0
        try:
            if address:
                self._memory.free(address)
        finally:
            if pinned is not None:
                self._memory.free_pinned(pinned)


class ExecutionContext:
    """An execution context on one optimisation profile, with its buffers.

    Args:
        engine: The engine; it must outlive the execution context.
        memory: The seam to CUDA.
        profile: Index of the optimisation profile.
        inputs: Engine inputs.
        outputs: Engine outputs.
        use_graph: Record the first run as a CUDA graph and replay it. The caller then keeps one execution
            context per shape.

    Raises:
        InferenceError: TensorRT gives no context, usually because device memory is short.
    """

    def __init__(
        self,
        engine: Any,
        memory: CudaMemory,
        profile: int,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        use_graph: bool,
    ) -> None:
        self._memory = memory
        self._inputs = inputs
        self._outputs = outputs
        self._use_graph = use_graph
        self._graph: Any = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._context: Any = engine.create_execution_context()
        if self._context is None:
            raise InferenceError(
                "TensorRT gives no execution context.",
                "Free device memory, build with a smaller maximum batch, or build with weight streaming.",
            )
        if profile and not self._context.set_optimization_profile_async(profile, memory.stream):
            raise InferenceError(f"TensorRT refuses optimisation profile {profile}.", "Build the engine again.")
        memory.synchronize()
        self._buffers = {spec.name: _Buffer(memory) for spec in (*inputs, *outputs)}

    def run(self, feeds: Mapping[str, Array], messages: Sequence[str]) -> dict[str, Array]:
        """Copy in, execute, copy out. The returned arrays are the caller's own.

        Args:
            feeds: Checked inputs.
            messages: What TensorRT has logged since this call began.

        Raises:
            InferenceError: TensorRT or CUDA reports an error.
        """
        shapes = {name: array.shape for name, array in feeds.items()}
        if shapes != self._shapes:
            self._prepare(shapes, messages)
        for spec in self._inputs:
            np.copyto(self._buffers[spec.name].view(spec, shapes[spec.name]), feeds[spec.name])
        if self._graph is None:
            self._enqueue(messages)
            if self._use_graph:
                # The run above was TensorRT's warm-up for these shapes, which must precede the recording.
                self._memory.synchronize()
                self._record(messages)
        else:
            self._memory.launch(self._graph)
        self._memory.synchronize()
        return {spec.name: self._buffers[spec.name].view(spec, self._shape_of(spec)).copy() for spec in self._outputs}

    def _prepare(self, shapes: dict[str, tuple[int, ...]], messages: Sequence[str]) -> None:
        """Tell the context the input shapes, make room, and give it the addresses."""
        # A run that failed half-way may have left copies in the queue that still use the buffers.
        self._memory.synchronize()
        self._drop_graph()
        self._shapes = {}
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise InferenceError(f"TensorRT refuses shape {shape} for '{name}': {_reason(messages)}", _REBUILD)
        for spec in (*self._inputs, *self._outputs):
            shape = shapes.get(spec.name) or self._shape_of(spec)
            nbytes = max(1, int(np.prod(shape)) * np.dtype(spec.dtype).itemsize)
            self._buffers[spec.name].reserve(nbytes)
            if not self._context.set_tensor_address(spec.name, self._buffers[spec.name].address):
                raise InferenceError(f"TensorRT refuses the buffer of '{spec.name}': {_reason(messages)}", _REBUILD)
        self._shapes = shapes

    def _shape_of(self, spec: TensorSpec) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(axis < 0 for axis in shape):
            raise InferenceError(
                f"The shape of output '{spec.name}' depends on the values of the inputs ({list(shape)}).",
                "Export the model so that every output shape follows from the input shapes.",
            )
        return shape

    def _enqueue(self, messages: Sequence[str]) -> None:
        memory = self._memory
        for spec in self._inputs:
            buffer = self._buffers[spec.name]
            assert buffer.pinned is not None
            nbytes = int(np.prod(self._shapes[spec.name])) * np.dtype(spec.dtype).itemsize
            memory.upload(buffer.address, buffer.pinned, nbytes)
        if not self._context.execute_async_v3(memory.stream):
            raise InferenceError(f"TensorRT failed to execute: {_reason(messages)}", "Check free device memory.")
        for spec in self._outputs:
            buffer = self._buffers[spec.name]
            assert buffer.pinned is not None
            nbytes = int(np.prod(self._shape_of(spec))) * np.dtype(spec.dtype).itemsize
            memory.download(buffer.pinned, buffer.address, nbytes)

    def _record(self, messages: Sequence[str]) -> None:
        self._memory.begin_capture()
        try:
            self._enqueue(messages)
        except InferenceError:
            # The stream must leave capture mode whatever happened; a broken recording cannot be instantiated, and what
            # broke it is the error that counts.
            with suppress(InferenceError):
                self._memory.destroy_graph(self._memory.end_capture())
            raise
        self._graph = self._memory.end_capture()

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._memory.destroy_graph(graph)

    def close(self) -> None:
        """Wait for the stream, then release graph, context and buffers, in this order and even if one of them fails."""
        if self._context is None:
            return
        with ExitStack() as steps:  # runs last to first
            for buffer in self._buffers.values():
                steps.callback(buffer.release)
            steps.callback(self._drop_context)
            steps.callback(self._drop_graph)
            steps.callback(self._memory.synchronize)

    def _drop_context(self) -> None:
        self._context = None


_REBUILD = "Build the engine again with `vitexport build-engine` for this batch size."


def _reason(messages: Sequence[str]) -> str:
    return "; ".join(messages) or "no reason given"


def io_specs(
    api: TensorRTApi, engine: Any, sidecar: EngineSidecar | None
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs of an engine; axis names come from the sidecar, the plan has none.

    Where every optimisation profile takes one and the same batch size, the batch is fixed to it, so that callers pad
    their batches as they do for any model of a fixed size.

    Raises:
        RuntimeBackendError: An input or output has a type NumPy lacks.
    """
    known = {} if sidecar is None else {item.name: item.spec for item in (*sidecar.inputs, *sidecar.outputs)}
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise RuntimeBackendError(
                f"Engine tensor '{name}' has type {kind}, which NumPy has no type for.",
                "Export the model with float32 or float16 inputs and outputs.",
            )
        dims = tuple(engine.get_tensor_shape(name))
        shape = tuple(
            axis if axis >= 0 else ("batch" if position == 0 else f"{name}_axis{position}")
            for position, axis in enumerate(dims)
        )
        spec = known.get(name, TensorSpec(name, shape, _DTYPES[kind]))
        is_input = engine.get_tensor_mode(name) == api.module.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(spec)
    batch = _only_batch(engine, inputs)
    return tuple(_with_batch(spec, batch) for spec in inputs), tuple(_with_batch(spec, batch) for spec in outputs)


def _only_batch(engine: Any, inputs: Sequence[TensorSpec]) -> int | None:
    """Return the batch size that all profiles fix, or None where there is a choice."""
    sizes: set[int] = set()
    for spec in inputs:
        if spec.shape and isinstance(spec.shape[0], str):
            for profile in range(engine.num_optimization_profiles):
                low, _, high = engine.get_tensor_profile_shape(spec.name, profile)
                sizes |= {int(low[0]), int(high[0])}
    return sizes.pop() if len(sizes) == 1 else None


def _with_batch(spec: TensorSpec, batch: int | None) -> TensorSpec:
    if batch is None or not spec.shape or isinstance(spec.shape[0], int):
        return spec
    return TensorSpec(spec.name, (batch, *spec.shape[1:]), spec.dtype)
