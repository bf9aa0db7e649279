"""Running a graph with its intermediate tensors visible, or replaced by given ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.closing import Closing
from vitexport.errors import InferenceError, RuntimeBackendError
from vitexport.host.graph.file import read_onnx
from vitexport.host.graph.intermediate import exposed_file, take_as_inputs
from vitexport.runtimes import RuntimeOptions
from vitexport.runtimes.onnxruntime_session import open_session, vendor_errors

__all__ = ["GIVEN", "Probe"]

GIVEN = "::given"
"""Suffix of the graph input that replaces a tensor."""

Tensors = dict[str, NDArray[np.generic]]


class Probe(Closing):
    """A model whose intermediate tensors can be read and replaced.

    The graph runs as written, without ONNX Runtime's optimisations: fused kernels would hide the tensors, and what is
    examined is the graph, not a kernel.

    Args:
        model: ONNX file.
        read: Tensors to return.
        given: Tensors whose consumers get a value from outside instead; what the graph itself computes there can still
            be read.

    Raises:
        InferenceError: ONNX Runtime cannot open the model.
    """

    def __init__(self, model: Path, read: Collection[str], given: Collection[str] = ()) -> None:
        graph = read_onnx(model)
        self.input = str(graph.graph.inputs[0].name)
        self._types = {name: kind.numpy() for name, kind in take_as_inputs(graph, given, GIVEN).items()}
        self.outputs = list(read)
        with ExitStack() as stack:
            path = stack.enter_context(exposed_file(graph, read))
            try:
                self._session: Any = open_session(path, RuntimeOptions(optimize=False))
            except RuntimeBackendError as error:
                raise InferenceError(
                    f"'{model}' cannot be opened with its intermediate tensors visible: {error.message}",
                    "Check that the model runs as it is: `vitexport inspect` and `vitexport verify`.",
                ) from error
            self._open = stack.pop_all()

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
            outputs = self._session.run(self.outputs, feeds)
        except vendor_errors() as error:
            raise InferenceError(f"ONNX Runtime failed: {error}", "Check the input values and free memory.") from error
        return dict(zip(self.outputs, outputs, strict=True))

    def close(self) -> None:
        """Drop the session and the exposed graph."""
        self._session = None
        self._open.close()
