"""A recording fake of a machine with a GPU: TensorRT's API and CUDA's runtime API, sharing device memory and one clock.

It is strict where the real thing crashes: a build without its parser, an inspector outliving its engine, device memory
freed while queued work still uses it. Queued work runs only when the stream is synchronized, so buffers that die too
early are found. ``surface`` restricts the API to what a real release has (see ``surfaces.py``); without one it is that
of a release that builds only on its own GPU, unless ``ahead_of_time`` is set.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

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


class Crash(AssertionError):
    """What would be a segfault."""


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
        self.cudart = _cudart(self)

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
    script = machine.script

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            machine.events.append("logger")

        def log(self, severity: int, message: str) -> None:
            raise Crash("the logger must be overridden")

    class Tracked:
        _label = ""

        def _born(self, label: str) -> None:
            self._label = label
            machine.events.append(f"create {label}")

        def __del__(self) -> None:
            machine.events.append(f"delete {self._label}")

    class Tensor:
        def __init__(self, name: str, shape: tuple[int, ...]) -> None:
            self.name = name
            self.shape = shape
            self.dtype = module.DataType.FLOAT

        def get_dimension_name(self, axis: int) -> str:
            return "batch" if axis == 0 else ""

    class INetworkDefinition(Tracked):
        num_inputs = 1
        num_outputs = 1
        num_layers = 1

        def __init__(self, flags: int) -> None:
            self._born("network")
            self._parser: weakref.ref[Any] | None = None
            machine.events.append(f"flags {flags}")

        def get_input(self, index: int) -> Tensor:
            return Tensor("x", (-1, 4))

        def get_output(self, index: int) -> Tensor:
            return Tensor("y", (-1, 2))

        def get_layer(self, index: int) -> Any:
            return Layer()

    class Layer:
        name = "fc"
        metadata = "[ONNX Layer: fc]"
        num_inputs = 2
        num_outputs = 1
        op0 = module.MatrixOperation.NONE

        def __init__(self) -> None:
            self.type = module.LayerType.MATRIX_MULTIPLY

        def get_input(self, index: int) -> Tensor:
            return Tensor(f"in{index}", (-1, 4) if index == 0 else (4, 2))

        def get_output(self, index: int) -> Tensor:
            return Tensor("out", (-1, 2))

    class IOptimizationProfile(Tracked):
        def __init__(self) -> None:
            self._born("profile")

        def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
            machine.events.append(f"profile {name} {low} {best} {high}")

    class ITimingCache:
        def serialize(self) -> bytes:
            return b"timings"

    class IBuilderConfig(Tracked):
        def __init__(self) -> None:
            self._born("config")
            self._profiles = 0
            self._cache: Any = None
            self.profiling_verbosity: Any = None
            self.builder_optimization_level = 3
            self.hardware_compatibility_level: Any = None
            self.progress_monitor: Any = None
            if _has(machine, "IBuilderConfig", "num_compute_capabilities"):
                self.num_compute_capabilities = 0

        def set_flag(self, flag: Any) -> None:
            machine.events.append(f"set {flag.name}")

        def clear_flag(self, flag: Any) -> None:
            machine.events.append(f"clear {flag.name}")

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            machine.events.append(f"pool {pool.name} {size}")

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles += 1
            return -1 if script.get("bad_profile") else self._profiles - 1

        def create_timing_cache(self, data: bytes) -> Any:
            machine.events.append(f"timing cache {len(data)}")
            return ITimingCache()

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self._cache = cache
            return not script.get("stale_cache") or machine.count("timing cache") > 1

        def get_timing_cache(self) -> Any:
            return self._cache

        def set_compute_capability(self, capability: Any, index: int) -> bool:
            machine.events.append(f"target {capability.name} {index}")
            return True

    class Builder(Tracked):
        def __init__(self, logger: Any) -> None:
            if script.get("no_builder"):
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._born("builder")
            self._logger = logger

        def create_network(self, flags: int) -> Any:
            return module.INetworkDefinition(flags)

        def create_builder_config(self) -> Any:
            return module.IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return module.IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            parser = network._parser and network._parser()
            if parser is None:
                raise Crash("the parser, which owns the weights, is gone")
            machine.events.append("build")
            monitor = config.progress_monitor
            if monitor is not None:
                monitor.phase_start("Building", None, 2)
                monitor.phase_start("Timing", "Building", 1)
                going = monitor.step_complete("Timing", 0)
                monitor.phase_finish("Timing")
                monitor.phase_finish("Building")
                if not going:
                    return None
            if script["plan"] is None:
                self._logger.log(ILogger.ERROR, "no tactic found")
            plan = script["plan"]
            return None if plan is None else bytes(plan)

    class ParserError:
        def code(self) -> Any:
            return SimpleNamespace(name="INVALID_NODE")

        def desc(self) -> str:
            return "Assertion failed: zero point"

        def node(self) -> int:
            return 3

        def node_name(self) -> str:
            return "DQ7"

        def node_operator(self) -> str:
            return "DequantizeLinear"

    class OnnxParser(Tracked):
        num_errors = 1

        def __init__(self, network: Any, logger: Any) -> None:
            self._born("parser")
            self._network = weakref.ref(network)
            network._parser = weakref.ref(self)

        def parse_from_file(self, path: str) -> bool:
            machine.events.append("parse")
            return bool(script["parse"])

        def get_error(self, index: int) -> Any:
            return ParserError()

        def __del__(self) -> None:
            if self._network() is None:
                raise Crash("the network is gone before its parser")
            super().__del__()

    class EngineInspector(Tracked):
        def __init__(self, engine: Any) -> None:
            self._born("inspector")
            self._engine = weakref.ref(engine)

        def get_engine_information(self, form: Any) -> str:
            return str(script["inspector"])

        def __del__(self) -> None:
            if self._engine() is None:
                raise Crash("the engine is gone before its inspector")
            super().__del__()

    class ISerializationConfig:
        def set_flag(self, flag: Any) -> bool:
            machine.events.append(f"serialize with {flag.name}")
            return True

        def clear_flag(self, flag: Any) -> bool:
            machine.events.append(f"serialize without {flag.name}")
            return True

    class ICudaEngine(Tracked):
        num_io_tensors = 2

        def __init__(self) -> None:
            self._born("engine")
            self.num_optimization_profiles = len(script["profiles"])
            self.streamable_weights_size = script["streamable"]
            self.weight_streaming_budget_v2 = 0

        def get_weight_streaming_automatic_budget(self) -> int:
            return 77

        def get_tensor_name(self, index: int) -> str:
            return ("x", "y")[index]

        def get_tensor_dtype(self, name: str) -> Any:
            return module.DataType[script.get("io_dtype", "FLOAT")]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (-1, 4) if name == "x" else (-1, 2)

        def get_tensor_mode(self, name: str) -> Any:
            return module.TensorIOMode.INPUT if name == "x" else module.TensorIOMode.OUTPUT

        def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
            return script["profiles"][profile]

        def create_execution_context(self) -> Any:
            machine.events.append(f"budget {self.weight_streaming_budget_v2}")
            return module.IExecutionContext(self) if script["context"] else None

        def create_engine_inspector(self) -> Any:
            return module.EngineInspector(self)

        def create_serialization_config(self) -> Any:
            return module.ISerializationConfig()

        def serialize_with_config(self, config: Any) -> bytes:
            return b"complete plan"

    class IExecutionContext(Tracked):
        def __init__(self, engine: Any) -> None:
            self._born("context")
            self._engine = weakref.ref(engine)
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}

        def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
            machine.events.append(f"use profile {profile} on {stream}")
            return not script.get("refuse_profile")

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._shapes[name] = tuple(shape)
            machine.events.append(f"shape {name} {tuple(shape)}")
            return not script.get("refuse_shape")

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return script.get("output_shape") or (self._shapes["x"][0], 2)

        def set_tensor_address(self, name: str, address: int) -> bool:
            machine.check(address)
            self._addresses[name] = address
            machine.events.append(f"address {name}")
            return not script.get("refuse_address")

        def execute_async_v3(self, stream: int) -> bool:
            machine.events.append("execute")
            if not script["execute"] or (machine.capturing is not None and script.get("fail_in_capture")):
                return False
            batch = self._shapes["x"][0]
            source, target = self._addresses["x"], self._addresses["y"]

            def compute() -> None:
                if self._engine() is None:
                    raise Crash("the engine is gone while its context executes")
                values = np.frombuffer(machine.memory[source], np.float32, batch * 4).reshape(batch, 4)
                result = np.stack([values.sum(1), values.max(1)], axis=1).astype(np.float32)
                machine.memory[target][: result.nbytes] = result.tobytes()

            machine.enqueue(compute, {source, target})
            return True

        def __del__(self) -> None:
            if self._engine() is None:
                raise Crash("the engine is gone before its context")
            super().__del__()

    class Runtime(Tracked):
        def __init__(self, logger: Any) -> None:
            self._born("runtime")
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if not script["engine"]:
                self._logger.log(ILogger.ERROR, "the plan was made for another GPU")
                return None
            return module.ICudaEngine()

    class Refitter(Tracked):
        def __init__(self, engine: Any, logger: Any) -> None:
            self._born("refitter")

        def refit_cuda_engine(self) -> bool:
            machine.events.append("refit")
            return True

        def get_missing_weights(self) -> list[str]:
            return list(script["missing_weights"])

    class OnnxParserRefitter:
        def __init__(self, refitter: Any, logger: Any) -> None:
            machine.events.append("create parser refitter")

        def refit_from_file(self, path: str) -> bool:
            machine.events.append("refit from file")
            return not script.get("refuse_weights")

    class IProgressMonitor:
        def __init__(self) -> None:
            machine.events.append("monitor")

    for made in (
        ILogger, INetworkDefinition, IOptimizationProfile, IBuilderConfig, Builder, OnnxParser, EngineInspector,
        ISerializationConfig, ICudaEngine, IExecutionContext, Runtime, Refitter, OnnxParserRefitter, IProgressMonitor,
    ):  # fmt: skip
        setattr(module, made.__name__, _restricted(machine, made))
    for name, base in (("IMatrixMultiplyLayer", Layer), ("IConvolutionLayer", Layer)):
        setattr(module, name, type(name, (base,), {}))
    return module


def _has(machine: Machine, owner: str, name: str) -> bool:
    return machine.surface is None or name in machine.surface["classes"].get(owner, ())


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


def _cudart(machine: Machine) -> Any:
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
