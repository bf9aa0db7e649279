"""ONNX Runtime on the CPU, or on its CUDA and TensorRT execution providers where they are installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Self

from vitexport.errors import InferenceError
from vitexport.runtimes.base import Adapter, RuntimeOptions, RuntimePackage
from vitexport.runtimes.onnxruntime_profile import executed_layers, fraction_of_work
from vitexport.runtimes.onnxruntime_session import open_session, vendor_errors
from vitexport.tensors import Array, TensorSpec

__all__ = ["OnnxRuntime"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxRuntime(Adapter):
    """An ONNX Runtime session behind the runtime protocol."""

    name = "onnxruntime"
    concurrent = True
    package = RuntimePackage(
        name="onnxruntime",
        module="onnxruntime",
        extra="ort",
        purpose="running ONNX models",
        program="import onnxruntime as m; print(', '.join(m.get_available_providers()))",
    )

    def __init__(self, model: Path, options: RuntimeOptions, session: Any, metadata: Mapping[str, str]) -> None:
        super().__init__(
            tuple(_spec(node) for node in session.get_inputs()),
            tuple(_spec(node) for node in session.get_outputs()),
            metadata,
        )
        self._model = model
        self._options = options
        self._session: Any = session
        self._output_names = [spec.name for spec in self.outputs]

    @classmethod
    def open(cls, model: Path, options: RuntimeOptions) -> Self:
        """Open an ONNX file.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            RuntimeBackendError: The file is no ONNX model, uses what this version lacks, or the execution
                provider is absent.
        """
        session = open_session(model, options)
        return cls(model, options, session, dict(session.get_modelmeta().custom_metadata_map))

    def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise InferenceError("This runtime is closed.", "Open the model again.")
        try:
            values = self._session.run(self._output_names, feeds)
        except vendor_errors() as error:
            raise InferenceError(f"ONNX Runtime failed: {error}", "Check the input values and free memory.") from error
        return dict(zip(self._output_names, values, strict=True))

    def executed(self, feeds: Mapping[str, Array]) -> Mapping[str, float] | None:
        """Run once more in a session like this one, under the profiler, and return what it executed.

        None where nothing with weights was executed, and on the TensorRT execution provider: it turns whole subgraphs
        into one node each, and the profile does not see into them.
        """
        if self._options.execution_provider == "tensorrt":
            return None
        layers = executed_layers(self._model, feeds, self._options)
        return {kind: fraction_of_work(layers, kind) for kind in sorted({layer.precision for layer in layers})} or None

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def _spec(node: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else str(axis or f"axis{i}") for i, axis in enumerate(node.shape))
    return TensorSpec(node.name, shape, _DTYPES.get(node.type, node.type))
