"""The half of the fake TensorRT that deserializes, runs, inspects and refits."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.fake_tensorrt.base import ERROR, Crash, tracked

if TYPE_CHECKING:
    from tests.support.fake_tensorrt.machine import Machine


def runtime_classes(machine: Machine, module: Any) -> tuple[type, ...]:
    """Return the classes; they find each other through ``module``."""
    script = machine.script
    Tracked = tracked(machine)

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
            engine = self._engine  # queued work holds no context, as a CUDA graph holds none

            def compute() -> None:
                if engine() is None:
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
                self._logger.log(ERROR, "the plan was made for another GPU")
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

    return (
        EngineInspector,
        ISerializationConfig,
        ICudaEngine,
        IExecutionContext,
        Runtime,
        Refitter,
        OnnxParserRefitter,
    )
