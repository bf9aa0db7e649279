"""An ONNX model indexed for rules: who makes a tensor, who reads it, what is constant, which shapes are known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, numpy_helper, shape_inference

from vitexport.errors import BundleError
from vitexport.host.graph.scopes import MODULE_KEY

__all__ = ["LintGraph", "load_graph"]

# Operators that hand their first input on, changed in shape at most.
PASS_THROUGH = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Slice")


@dataclass(frozen=True)
class LintGraph:
    """One model.

    Attributes:
        path: The file.
        model: The model; external weights are not loaded.
        producers: Tensor -> node that makes it.
        consumers: Tensor -> nodes that read it.
        constants: Initializers by name, and the outputs of Constant nodes.
        values: Shapes and types that the file states or shape inference finds.
    """

    path: Path
    model: onnx.ModelProto
    producers: dict[str, NodeProto]
    consumers: dict[str, list[NodeProto]]
    constants: dict[str, TensorProto]
    values: dict[str, ValueInfoProto]

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)

    def nodes(self, *operators: str) -> Iterator[NodeProto]:
        """Yield the nodes of these operators, or all."""
        for node in self.model.graph.node:
            if not operators or node.op_type in operators:
                yield node

    def name(self, node: NodeProto) -> str:
        """Return a node's name, or its operator and output where it has none."""
        return node.name or f"{node.op_type} -> {node.output[0] if node.output else '?'}"

    def module(self, node: NodeProto) -> str:
        """Return the PyTorch module a node came from; empty where the file does not say."""
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        if MODULE_KEY in metadata:
            return metadata[MODULE_KEY]
        scopes = re.findall(r"'([^']*)'", metadata.get("pkg.torch.onnx.name_scopes", ""))
        return scopes[-2] if len(scopes) > 1 else ""

    def dtype(self, tensor: str) -> int:
        """Return the element type of a tensor as ``TensorProto.DataType``; 0 where it is unknown."""
        if tensor in self.constants:
            return self.constants[tensor].data_type
        value = self.values.get(tensor)
        return 0 if value is None else value.type.tensor_type.elem_type

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor with -1 for dynamic axes; None where it is unknown."""
        if tensor in self.constants:
            return tuple(self.constants[tensor].dims)
        value = self.values.get(tensor)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in value.type.tensor_type.shape.dim)

    def array(self, tensor: str) -> NDArray[np.generic] | None:
        """Return the value of a small constant; None if it is not constant or its data lies outside the file."""
        constant = self.constants.get(tensor)
        if constant is None or constant.data_location == TensorProto.EXTERNAL:
            return None
        array: NDArray[np.generic] = numpy_helper.to_array(constant)
        return array

    def is_constant(self, tensor: str) -> bool:
        """Return True if a tensor is a weight, possibly dequantized, cast or reshaped on its way."""
        while tensor not in self.constants:
            node = self.producers.get(tensor)
            if node is None or node.op_type not in (*PASS_THROUGH, "DequantizeLinear", "QuantizeLinear", "Cast"):
                return False
            tensor = node.input[0]
        return True

    def origin(self, tensor: str) -> NodeProto | None:
        """Return the node that makes a tensor, looking through operators that only reshape."""
        node = self.producers.get(tensor)
        while node is not None and node.op_type in PASS_THROUGH:
            node = self.producers.get(node.input[0])
        return node

    def readers(self, tensor: str) -> list[NodeProto]:
        """Return the nodes that read a tensor, looking through operators that only reshape."""
        found: list[NodeProto] = []
        for node in self.consumers.get(tensor, []):
            found += self.readers(node.output[0]) if node.op_type in PASS_THROUGH else [node]
        return found


def load_graph(path: Path) -> LintGraph:
    """Read a model without its external weights.

    Raises:
        BundleError: The file is missing, truncated or no ONNX model.
    """
    if not path.is_file():
        what = "a directory" if path.is_dir() else "nothing"
        raise BundleError(f"Expected an ONNX model at '{path}', found {what}.", "Check the path.")
    try:
        # The format is said, since onnx would otherwise guess it from the suffix.
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (OSError, DecodeError) as error:
        raise BundleError(
            f"Expected an ONNX model at '{path}': {error}", "Export it again, or copy it again."
        ) from error
    if not model.graph.node:
        raise BundleError(f"Expected an ONNX model at '{path}', found no graph in it.", "Export it again.")
    try:
        inferred = shape_inference.infer_shapes(model).graph
    except shape_inference.InferenceError:
        # Shapes help some rules; a model that inference refuses (custom operators) is still linted by the others.
        inferred = model.graph
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers: dict[str, NodeProto] = {}
    consumers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.output:
            producers[name] = node
        for name in node.input:
            consumers.setdefault(name, []).append(node)
        if node.op_type == "Constant":
            constants.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    values = {value.name: value for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    return LintGraph(path, model, producers, consumers, constants, values)
