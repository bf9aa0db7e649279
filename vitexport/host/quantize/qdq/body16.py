"""A 16-bit body: every float32 tensor becomes float16 or bfloat16, except what would overflow or ONNX forbids."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vitexport.errors import QuantizeError
from vitexport.host.graph.constants import add_initializer, array_of, is_constant
from vitexport.host.graph.intermediate import open_exposed
from vitexport.host.graph.schema import first_opset, opset_of, permits_input, permits_output
from vitexport.host.graph.scopes import inherit_module
from vitexport.host.quantize.calibration.calibrate import ImageFeeds, run_images
from vitexport.host.quantize.numerics.qparams import BFLOAT16_MAX, FLOAT16_MAX
from vitexport.tensors import Array

__all__ = ["Body16Report", "float_ranges", "to_body16"]

_LIMITS = {"float16": FLOAT16_MAX, "bfloat16": BFLOAT16_MAX}
_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_NUMPY = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

_HEADROOM = 4.0
"""Factor over what calibration saw at which a tensor must still fit: other images have larger values."""

_MOVING = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose result holds the values of their first input: it reaches as far."""

_SUFFIX = "half"
"""Ends the name of a value that was cast to 16 bits; part of what is written into files."""


@dataclass(frozen=True)
class Body16Report:
    """What a 16-bit conversion kept in float32, and why.

    Attributes:
        dtype: ``float16`` or ``bfloat16``.
        kept: Node name -> why, in words: its values, or an operator that ONNX permits no such type in the file's opset.
    """

    dtype: str
    kept: Mapping[str, str]


def float_ranges(
    model: ir.Model, feeds: ImageFeeds, images: Sequence[int], output: str = ""
) -> tuple[dict[str, float], list[Array]]:
    """Return the largest magnitude of every float32 tensor that nodes compute, over some images, and one output.

    The graph itself takes the maxima: one number of each tensor leaves the runtime, not the tensor.

    Args:
        model: A float model; it stays as it is.
        feeds: Calibration images.
        images: Which of them are run.
        output: Name of an output of the model that is returned too, one array for each image.
    """
    probe = model.clone()
    peaks: dict[str, str] = {}
    measured: set[str] = set()
    moved: dict[str, str] = {}
    for node in list(probe.graph):
        source = "" if not node.inputs or node.inputs[0] is None else str(node.inputs[0].name)
        if node.op_type in _MOVING and (source in measured or source in moved):
            moved.update({str(value.name): source for value in node.outputs})
            continue
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and not (value.shape is not None and len(value.shape) == 0):
                peaks[_take_peak(probe.graph, value)] = str(value.name)
                measured.add(str(value.name))
    ranges = dict.fromkeys(peaks.values(), 0.0)
    found = []
    with open_exposed(probe, list(peaks)) as runtime:
        for outputs in run_images(runtime, feeds, images):
            for peak, name in peaks.items():
                # Of a full batch the first row holds the maximum of all.
                if outputs[peak].size:
                    ranges[name] = max(ranges[name], float(outputs[peak].max()))
            if output:
                found.append(outputs[output])
    for name, source in moved.items():
        ranges[name] = ranges[source]
    return ranges, found


def _take_peak(graph: ir.Graph, value: ir.Value) -> str:
    """Add the nodes that find a tensor's largest magnitude; return the name of their result, one element."""
    magnitude = ir.node("Abs", [value], name=f"{value.name}.magnitude")
    largest = ir.node("ReduceMax", [magnitude.outputs[0]], attributes={"keepdims": 1}, name=f"{value.name}.peak")
    for node in (magnitude, largest):
        node.outputs[0].name, node.outputs[0].type = f"{node.name}.value", value.type
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [magnitude, largest])
    return str(largest.outputs[0].name)


def to_body16(model: ir.Model, dtype: str, ranges: Mapping[str, float]) -> Body16Report:
    """Convert a float32 graph in place; inputs and outputs of the model keep their types.

    A node is kept in float32, between casts, where calibration saw a value of it above a quarter of the largest finite
    number, where a weight is beyond it, or where the schema of its operator permits no result of that type in the
    model's opset (Conv takes bfloat16 from opset 22 on). What dequantizes its operands is kept with it.

    Args:
        model: Float32 graph, possibly with Q/DQ.
        dtype: ``float16`` or ``bfloat16``.
        ranges: Largest magnitude by tensor name.

    Raises:
        QuantizeError: A value has no known type.
    """
    graph = model.graph
    ranges = {**ranges, **_dequantized_ranges(graph, ranges)}
    opset = opset_of(model)
    reasons = {node: _not_permitted(node, opset, _TYPES[dtype]) or _overflows(node, ranges, dtype) for node in graph}
    kept = {node: reason for node, reason in reasons.items() if reason}
    _keep_whole(kept)
    conversion = _Conversion(model, dtype, kept)
    for node in list(graph):
        conversion.convert(node)
    conversion.restore_outputs()
    for name in [
        name for name, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()
    ]:
        del graph.initializers[name]
    return Body16Report(dtype, {str(node.name): reason for node, reason in kept.items()})


def _keep_whole(kept: dict[ir.Node, str]) -> None:
    """Keep also what dequantizes for a node that is kept, and what else reads that.

    A Cast between DequantizeLinear and product would have the product computed in float.
    """
    pending = list(kept)
    while pending:
        node = pending.pop()
        for value in node.inputs:
            dequantize = None if value is None else value.producer()
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            for other in (dequantize, *dequantize.outputs[0].consumers()):
                if other not in kept:
                    kept[other] = f"it goes with '{node.name}': {kept[node]}"
                    pending.append(other)


def _not_permitted(node: ir.Node, opset: int, dtype: ir.DataType) -> str:
    """Return why ONNX has a node give float32; empty where its results may be of that type."""

    def permits(version: int) -> bool:
        return all(
            permits_output(node.op_type, version, index, dtype, node.domain)
            for index, value in enumerate(node.outputs)
            if value.dtype == ir.DataType.FLOAT
        )

    if permits(opset):
        return ""
    first = first_opset(opset, permits)
    name = dtype.name.lower()
    if first is None:
        return f"ONNX permits no {name} for {node.op_type}"
    return f"ONNX permits {name} for {node.op_type} from opset {first} on, and the file has {opset}"


def _overflows(node: ir.Node, ranges: Mapping[str, float], dtype: str) -> str:
    """Return why a node's values are too large for a type; empty where they are not."""
    peak, limit = _peak(node, ranges), _LIMITS[dtype]
    if peak * _HEADROOM <= limit:
        return ""
    return f"its values reach {peak:.3g}, more than 1/{_HEADROOM:.0f} of {dtype}'s largest number {limit:.3g}"


def _dequantized_ranges(graph: ir.Graph, ranges: Mapping[str, float]) -> dict[str, float]:
    """Return the largest magnitude of what each DequantizeLinear puts out: what was quantized, or its stored weight."""
    ranges_after = {}
    for node in graph:
        if node.op_type != "DequantizeLinear":
            continue
        integers, scale = array_of(node.inputs[0]), array_of(node.inputs[1])
        quantize = None if node.inputs[0] is None else node.inputs[0].producer()
        if integers is not None and scale is not None:
            largest = np.abs(scale.astype(np.float64)).max() * np.abs(integers.astype(np.float64)).max()
            ranges_after[str(node.outputs[0].name)] = float(largest)
        elif quantize is not None and quantize.inputs[0] is not None:
            ranges_after[str(node.outputs[0].name)] = ranges.get(str(quantize.inputs[0].name), 0.0)
    return ranges_after


def _peak(node: ir.Node, ranges: Mapping[str, float]) -> float:
    peaks = [ranges.get(str(value.name), 0.0) for value in (*node.outputs, *node.inputs) if value is not None]
    for value in node.inputs:
        if is_constant(value) and value is not None and value.dtype == ir.DataType.FLOAT:
            array = array_of(value)
            finite = array[np.isfinite(array)] if array is not None else None
            # A mask's -inf or -3.4e38 saturates harmlessly to the lowest number; it is no activation.
            if finite is not None and finite.size and array is not None and array.size > 1:
                peaks.append(float(np.abs(finite).max()))
    return max(peaks, default=0.0)


class _Conversion:
    """The state of one conversion: which values are already 16-bit, and the casts between both."""

    def __init__(self, model: ir.Model, dtype: str, kept: Collection[ir.Node]) -> None:
        self._graph = model.graph
        self._opset = opset_of(model)
        self._type = _TYPES[dtype]
        self._numpy = _NUMPY[dtype]
        self._limit = _LIMITS[dtype]
        self._kept = kept
        self._narrow: dict[ir.Value, ir.Value] = {}
        self._wide: dict[ir.Value, ir.Value] = {}

    def convert(self, node: ir.Node) -> None:
        """Make a node compute in 16 bits, or cast around it where it must not."""
        wide = node in self._kept
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (ir.DataType.FLOAT, self._type):
                continue
            # Some inputs are float32 by definition, as the scales of Resize are.
            narrow = not wide and permits_input(node.op_type, self._opset, index, self._type, node.domain)
            if narrow and value.dtype == ir.DataType.FLOAT:
                node.replace_input_with(index, self._as_16_bit(value))
            elif not narrow and value.dtype == self._type:
                node.replace_input_with(index, self._as_float32(value))
        if wide:
            return
        for name in ("to", "dtype"):
            if name in node.attributes and node.attributes[name].as_int() == ir.DataType.FLOAT:
                node.attributes[name] = ir.AttrInt64(name, int(self._type))
        if node.op_type in ("Constant", "ConstantOfShape") and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
            if tensor.dtype == ir.DataType.FLOAT:
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(self._rounded(tensor.numpy())))
        for value in node.outputs:
            if value.dtype is None:
                raise QuantizeError(
                    f"Expected a known type for '{value.name}', found none.",
                    "Run the model through `vitexport simplify` first: it infers types.",
                )
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(self._type)  # a new one: values made from one another share the old

    def restore_outputs(self) -> None:
        """Cast the model's outputs back to float32 under their own names."""
        for index, value in enumerate(self._graph.outputs):
            if value.dtype == self._type:
                name = value.name
                value.name = f"{name}.{_SUFFIX}"
                wide = self._as_float32(value)
                wide.name, wide.shape = name, value.shape
                self._graph.outputs[index] = wide

    def _rounded(
        self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        limited = np.clip(array.astype(np.float32), -self._limit, self._limit)
        return np.where(np.isinf(array), array, limited).astype(self._numpy)

    def _as_16_bit(self, value: ir.Value) -> ir.Value:
        if value not in self._narrow:
            array = array_of(value) if is_constant(value) else None
            if array is not None:
                self._narrow[value] = add_initializer(
                    self._graph, f"{value.name}.{self._numpy.name}", self._rounded(array)
                )
            else:
                self._narrow[value] = self._cast(value, self._type, _SUFFIX)
        return self._narrow[value]

    def _as_float32(self, value: ir.Value) -> ir.Value:
        if value not in self._wide:
            self._wide[value] = self._cast(value, ir.DataType.FLOAT, "float32")
        return self._wide[value]

    def _cast(self, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
        node = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=f"{value.name}.to_{suffix}")
        result = node.outputs[0]
        result.name, result.shape, result.type = f"{value.name}.{suffix}", value.shape, ir.TensorType(dtype)
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, inherit_module(node, producer))
        return result
