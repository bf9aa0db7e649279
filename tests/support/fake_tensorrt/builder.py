"""The half of the fake TensorRT that parses and builds."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.support.fake_tensorrt.base import ERROR, Crash, has, tracked

if TYPE_CHECKING:
    from tests.support.fake_tensorrt.machine import Machine


def builder_classes(machine: Machine, module: Any) -> tuple[type, ...]:
    """Return the classes; they find each other through ``module``."""
    script = machine.script
    Tracked = tracked(machine)

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
            if has(machine, "IBuilderConfig", "num_compute_capabilities"):
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
                self._logger.log(ERROR, "no tactic found")
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

    class IProgressMonitor:
        def __init__(self) -> None:
            machine.events.append("monitor")

    for name in ("IMatrixMultiplyLayer", "IConvolutionLayer"):
        setattr(module, name, type(name, (Layer,), {}))
    return (INetworkDefinition, IOptimizationProfile, IBuilderConfig, Builder, OnnxParser, IProgressMonitor)
