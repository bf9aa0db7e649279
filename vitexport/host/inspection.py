"""What an ONNX file holds, read without loading its weights into a runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import BundleError
from vitexport.tensors import TensorSpec

__all__ = ["OnnxSummary", "inspect_onnx"]


@dataclass(frozen=True)
class OnnxSummary:
    """Facts about an ONNX file.

    Attributes:
        bytes: Size of the file and its external data.
        opset: Version of the default operator set.
        inputs: Graph inputs.
        outputs: Graph outputs.
        parameters: Number of initializer elements.
        operators: Operator to count, most frequent first.
        metadata: What the file carries as metadata; None when this package did not export it.
    """

    bytes: int
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    operators: Mapping[str, int]
    metadata: ModelMetadata | None


def inspect_onnx(path: Path) -> OnnxSummary:
    """Read an ONNX file.

    Raises:
        BundleError: The file is missing or no ONNX model.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise BundleError(f"Expected an ONNX model at '{path}': {error}", "Export it again.") from error
    if not model.graph.node:
        raise BundleError(f"Expected an ONNX model at '{path}', found no graph in it.", "Export it again.")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    graph = model.graph
    external = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location" and "/" not in entry.value
    }
    parameters = 0
    for tensor in graph.initializer:
        size = 1
        for axis in tensor.dims:
            size *= axis
        parameters += size
    files = [path, *(path.parent / name for name in external)]
    return OnnxSummary(
        bytes=sum(file.stat().st_size for file in files if file.is_file()),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        inputs=tuple(_spec(value) for value in graph.input),
        outputs=tuple(_spec(value) for value in graph.output),
        parameters=parameters,
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        metadata=ModelMetadata.from_metadata(metadata, where=str(path)) if "vitexport.model" in metadata else None,
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param or f"axis{index}"
        for index, axis in enumerate(tensor.shape.dim)
    )
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return TensorSpec(value.name, shape, {"float": "float32", "double": "float64"}.get(dtype, dtype))
