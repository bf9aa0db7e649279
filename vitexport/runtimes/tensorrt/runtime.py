"""TensorRT and TensorRT-RTX engines behind the runtime protocol: opening them, and choosing an execution context.

The order of checks matters: the sidecar refuses engines of another product, version or GPU in words; the CUDA driver is
asked for a GPU before any TensorRT call, because TensorRT may crash without one; only then is the plan deserialized.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from typing_extensions import Self

from vitexport.errors import FeedMismatchError, InferenceError, RuntimeBackendError
from vitexport.runtimes.base import Adapter, RuntimeOptions, RuntimePackage
from vitexport.runtimes.cuda import CudaMemory, open_memory, require_gpu
from vitexport.runtimes.tensorrt.api import PRODUCTS, ProductName, TensorRTApi, load_api
from vitexport.runtimes.tensorrt.audit import audit_engine
from vitexport.runtimes.tensorrt.context import ExecutionContext, io_specs
from vitexport.runtimes.tensorrt.plan import deserialize, require_compatible, stream_weights
from vitexport.runtimes.tensorrt.sidecar import EngineSidecar, product_of, read_sidecar
from vitexport.tensors import Array

__all__ = ["TensorRTRtxRuntime", "TensorRTRuntime"]

Shapes = dict[str, tuple[int, ...]]

_MAX_GRAPHS = 16


def _package(product: ProductName, purpose: str, without_gpu: str = "") -> RuntimePackage:
    known = PRODUCTS[product]
    return RuntimePackage(
        name=known.package,
        module=known.module,
        extra=known.extra,
        purpose=purpose,
        program=f"import {known.module} as m; assert m.Runtime(m.Logger(m.Logger.ERROR)); print(m.__version__)",
        needs_gpu=True,
        without_gpu=without_gpu,
    )


class TensorRTRuntime(Adapter):
    """One engine on one GPU. Calls from several threads are run one after the other, because buffers are reused."""

    name = "tensorrt"
    package = _package("tensorrt", "engines for NVIDIA servers and Jetson")
    without_a_file = "Build one with `vitexport build-engine`; `vitexport verify BUNDLE --engine ENGINE` checks it."
    _product: ProductName = "tensorrt"

    def __init__(
        self,
        api: TensorRTApi,
        engine: Any,
        memory: CudaMemory,
        metadata: Mapping[str, str],
        sidecar: EngineSidecar | None,
        *,
        model: Path | None = None,
        cuda_graph: bool = False,
    ) -> None:
        inputs, outputs = io_specs(api, engine, sidecar)
        super().__init__(inputs, outputs, metadata)
        self._model = model
        self._api = api
        self._engine: Any = engine
        self._memory: CudaMemory | None = memory
        self._cuda_graph = cuda_graph
        self._contexts: dict[object, ExecutionContext] = {}
        self._lock = threading.Lock()

    @classmethod
    def claims(cls, model: Path) -> bool:
        """Return whether the engine is for this product: both use the same suffixes, and the sidecar tells."""
        return product_of(model) == cls._product

    @classmethod
    def open(cls, model: Path, options: RuntimeOptions) -> Self:
        """Open an engine.

        Args:
            model: The plan; its sidecar is checked first where there is one.
            options: ``device`` names the GPU (``cuda:N``), ``cuda_binding`` the package device memory goes through
                (``cuda-python`` or ``pycuda``), ``cuda_graph`` replays each shape as a recorded graph.

        Raises:
            MissingDependencyError: The product, or the CUDA binding, is not installed.
            RuntimeBackendError: There is no GPU, or the engine was made for another product, version or GPU.
        """
        # The plan is hashed only once there is a GPU for it: without one the refusal comes at once.
        sidecar = read_sidecar(model, check_hash=False)
        if sidecar is not None and sidecar.product != cls._product:
            raise RuntimeBackendError(
                f"'{model}' was built for {sidecar.product}, and this is {cls._product}.",
                f"Open it with the runtime '{sidecar.product}'.",
            )
        number = options.device.partition(":")[2] or "0"
        if not number.isdigit():
            raise RuntimeBackendError(
                f"Expected a device such as 'cuda:0', found '{options.device}'.", "Give the number of a GPU."
            )
        index = int(number)
        gpu = require_gpu(f"Running '{model.name}' with {cls._product}", index)
        api = load_api(cls._product)
        require_compatible(model, sidecar, api, gpu)
        read_sidecar(model)
        memory = open_memory(index, options.cuda_binding)
        with ExitStack() as undo:
            # Whatever goes wrong from here on, the stream is released.
            undo.callback(memory.close)
            with memory.active():
                engine = deserialize(api, model)
                stream_weights(engine)
                metadata = {} if sidecar is None else sidecar.metadata
                runtime = cls(api, engine, memory, metadata, sidecar, model=model, cuda_graph=options.cuda_graph)
            undo.pop_all()
            return runtime

    def executed(self, feeds: Mapping[str, Array]) -> Mapping[str, float] | None:
        """Return what the engine's own inspector says of its kernels; see :mod:`vitexport.runtimes.tensorrt.audit`."""
        return None if self._model is None else audit_engine(self._model).weighted_fraction

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        shapes: Shapes = {name: array.shape for name, array in feeds.items()}
        with self._lock:
            memory = self._memory
            if memory is None:
                raise InferenceError("This runtime is closed.", "Open the engine again with open_runtime().")
            with memory.active(), self._api.messages() as messages:
                profile = self._profile_for(shapes)
                return self._context_for(memory, profile, shapes).run(feeds, messages)

    def _context_for(self, memory: CudaMemory, profile: int, shapes: Shapes) -> ExecutionContext:
        """Return the execution context for a profile; with CUDA graphs there is one per shape, as a graph is."""
        key = (profile, tuple(sorted(shapes.items()))) if self._cuda_graph else profile
        context = self._contexts.get(key)
        if context is None:
            if self._cuda_graph and len(self._contexts) >= _MAX_GRAPHS:
                self._contexts.pop(next(iter(self._contexts))).close()
            context = ExecutionContext(
                self._engine, memory, profile, self.inputs, self.outputs, use_graph=self._cuda_graph
            )
            self._contexts[key] = context
        return context

    def _profile_for(self, shapes: Shapes) -> int:
        """Return the profile that takes these shapes, the one tuned closest to them if there are several."""
        fitting: list[tuple[int, int]] = []
        ranges: list[str] = []
        for index in range(self._engine.num_optimization_profiles):
            distance, fits = 0, True
            for name, shape in shapes.items():
                low, best, high = (tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, index))
                fits &= all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
                distance += sum(abs(a - b) for a, b in zip(best, shape, strict=True))
                ranges.append(f"{name} {list(low)} to {list(high)}")
            if fits:
                fitting.append((distance, index))
        if not fitting:
            raise FeedMismatchError(
                f"No optimisation profile of this engine takes {shapes}; it was built for {'; '.join(ranges)}.",
                "Use a batch size within those, or build again with --batch including this size.",
            )
        return min(fitting)[1]

    def close(self) -> None:
        """Release graphs, buffers and contexts, then the engine, then the stream; calling it twice is fine."""
        with self._lock:
            memory, self._memory = self._memory, None
            if memory is None:
                return
            contexts, self._contexts = tuple(self._contexts.values()), {}
            # Run last to first, every one of them, also after one has failed.
            with ExitStack() as steps:
                steps.callback(memory.close)
                steps.enter_context(memory.active())
                steps.callback(self._drop_engine)
                for context in contexts:
                    steps.callback(context.close)

    def _drop_engine(self) -> None:
        self._engine = None


class TensorRTRtxRuntime(TensorRTRuntime):
    """The same for TensorRT-RTX."""

    name = "tensorrt-rtx"
    package = _package("tensorrt-rtx", "engines for RTX, built without a GPU", "builds engines without one")
    _product: ProductName = "tensorrt-rtx"
