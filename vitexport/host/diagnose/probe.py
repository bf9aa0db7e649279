"""Running a graph with its intermediate tensors visible, or replaced by given ones."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from typing_extensions import Self

from vitexport.errors import InferenceError
from vitexport.runtimes.onnxruntime import vendor_errors

__all__ = ["GIVEN", "Probe"]

GIVEN = "::given"
"""Suffix of the graph input that replaces a tensor."""

Tensors = dict[str, NDArray[np.generic]]


class Probe:
    """A model whose intermediate tensors can be read and replaced.

    The graph runs as written, without ONNX Runtime's optimisations: fused kernels would hide the tensors, and what is
    examined is the graph, not a kernel.

    Args:
        model: ONNX file.
        read: Tensors to return.
        given: Tensors whose readers get a value from outside instead; what the graph itself computes there can still be
            read.
    """

    def __init__(self, model: Path, read: Collection[str], given: Collection[str] = ()) -> None:
        loaded = ir.load(model)
        graph = loaded.graph
        values = {value.name: value for node in graph for value in node.outputs}
        self.input = str(graph.inputs[0].name)
        self._types: dict[str, np.dtype[Any]] = {}
        for name in given:
            value = values[name]
            kind = value.dtype or ir.DataType.FLOAT
            replacement = ir.Value(name=f"{name}{GIVEN}", type=ir.TensorType(kind))
            for node, index in value.uses():
                node.replace_input_with(index, replacement)
            graph.inputs.append(replacement)
            self._types[name] = kind.numpy()
        present = {value.name for value in graph.outputs}
        self.outputs = list(read)
        for name in read:
            if name not in present:
                graph.outputs.append(values[name])
                value = values[name]
                if value.type is None:
                    value.type = ir.TensorType(ir.DataType.FLOAT)
        self._folder = tempfile.TemporaryDirectory(prefix="vitexport-probe-")
        path = Path(self._folder.name) / "probe.onnx"
        ir.save(loaded, path, external_data="probe.data")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except vendor_errors() as error:
            self._folder.cleanup()
            raise InferenceError(
                f"ONNX Runtime cannot open '{model}' with its intermediate tensors visible: {error}",
                "Check that the model runs as it is: `vitexport inspect` and `vitexport verify`.",
            ) from error

    def run(self, feed: NDArray[np.generic], given: Mapping[str, NDArray[np.generic]] | None = None) -> Tensors:
        """Run one batch.

        Raises:
            InferenceError: The model failed.
        """
        feeds: Tensors = {self.input: feed}
        with np.errstate(over="ignore"):  # a value that float16 cannot hold becomes infinite: that is the finding
            for name, kind in self._types.items():
                feeds[f"{name}{GIVEN}"] = (given or {})[name].astype(kind)
        try:
            answers = self._session.run(self.outputs, feeds)
        except vendor_errors() as error:
            raise InferenceError(f"ONNX Runtime failed: {error}", "Check the input values and free memory.") from error
        return dict(zip(self.outputs, answers, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
        self._folder.cleanup()
