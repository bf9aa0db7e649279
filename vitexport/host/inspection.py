"""What an ONNX file holds, read without loading its weights into a runtime."""

from __future__ import annotations

import math
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

_HINT = "Give an ONNX file, an engine or a bundle's directory; export the model again if this should be one."


@dataclass(frozen=True)
class OnnxSummary:
    """Facts about an ONNX file.

    Attributes:
        bytes: Size of the file and its external data.
        opset: Version of the default operator set.
        inputs: Graph inputs.
        outputs: Graph outputs.
        parameters: Number of initializer elements.
        weights: Element type to the number of initializer elements, most first.
        operators: Operator to count, most frequent first.
        metadata: What the file carries as metadata; None when this package did not export it.
    """

    bytes: int
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    weights: Mapping[str, int]
    operators: Mapping[str, int]
    metadata: ModelMetadata | None


def inspect_onnx(path: Path) -> OnnxSummary:
    """Read an ONNX file.

    Raises:
        BundleError: The file is missing or no ONNX model.
    """
    try:
        # The format is said, since onnx would otherwise guess it from the suffix.
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (OSError, DecodeError) as error:
        raise BundleError(f"Expected an ONNX model at '{path}': {error}", _HINT) from error
    if not model.graph.node:
        raise BundleError(f"Expected an ONNX model at '{path}', found no graph in it.", _HINT)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    graph = model.graph
    external = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location" and "/" not in entry.value
    }
    elements: Counter[str] = Counter()
    for tensor in graph.initializer:
        elements[_dtype(tensor.data_type)] += math.prod(tensor.dims)
    files = [path, *(path.parent / name for name in external)]
    return OnnxSummary(
        bytes=sum(file.stat().st_size for file in files if file.is_file()),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        inputs=tuple(_spec(value) for value in graph.input),
        outputs=tuple(_spec(value) for value in graph.output),
        parameters=sum(elements.values()),
        weights=dict(elements.most_common()),
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        metadata=ModelMetadata.from_metadata(metadata, where=str(path)) if "vitexport.model" in metadata else None,
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param or f"axis{index}"
        for index, axis in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, shape, _dtype(tensor.elem_type))


def _dtype(elem_type: int) -> str:
    name = onnx.TensorProto.DataType.Name(elem_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
