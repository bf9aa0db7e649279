"""The form of a classifier that DeepStream's ``nvinfer`` feeds and reads: planes of pixels in, probabilities out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitexport.errors import ExportError
from vitexport.host.graph.constants import add_initializer
from vitexport.host.graph.file import read_onnx, write_onnx
from vitexport.host.graph.scopes import inherit_module
from vitexport.inputs.preprocess import PreprocessSpec

__all__ = ["PROBABILITIES", "write_pixel_planes"]

PROBABILITIES = "probabilities"


def write_pixel_planes(model_path: Path, preprocess: PreprocessSpec, out: Path) -> tuple[Path, ...]:
    """Write a model that takes ``float32[N, 3, H, W]`` pixels of 0 to 255 and puts out softmax probabilities.

    The normalization becomes three nodes that compute what :func:`~vitexport.inputs.preprocess.normalize` computes, in
    its order: folding it into the first layer would change last bits, and a quantized model turns those into whole
    integers.

    Args:
        model_path: A classifier made by this package, with normalized planes or uint8 pixels as its input.
        preprocess: Its normalization.
        out: The file to write.

    Returns:
        Companions of the file.

    Raises:
        ExportError: The file is no such classifier.
    """
    try:
        model = read_onnx(model_path)
        if model.graph.inputs[0].dtype == ir.DataType.UINT8:
            _take_planes(model)
        else:
            _normalize(model, preprocess)
        _append_softmax(model)
    except (ValueError, OSError) as error:
        raise ExportError(
            f"'{model_path}' cannot be turned into a graph that takes pixel planes: {error}",
            "Export a classifier with one image input, or choose another model of the bundle with --variant.",
        ) from error
    return write_onnx(model, out)


def _normalize(model: ir.Model, preprocess: PreprocessSpec) -> None:
    """Put ``(pixels * rescale - mean) / std`` in front of the graph."""
    graph, old = model.graph, model.graph.inputs[0]
    if len(graph.inputs) != 1 or old.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or old.shape is None:
        raise ValueError(f"expected one float input, found {', '.join(str(value) for value in graph.inputs)}")
    planes = ir.Value(name=old.name, shape=old.shape, type=ir.TensorType(ir.DataType.FLOAT))
    owner = next(iter(old.consumers()))
    steps = (("Mul", [preprocess.rescale]), ("Sub", preprocess.mean), ("Div", preprocess.std))
    nodes, value = [], planes
    for operator, numbers in steps:
        constant = np.asarray(numbers, dtype=np.float32).reshape(1, -1, 1, 1)
        operand = add_initializer(graph, f"pixels/{operator}", constant)
        nodes.append(ir.node(operator, [value, operand], name=f"pixels/{operator}"))
        value = nodes[-1].outputs[0]
    if old.dtype == ir.DataType.FLOAT16:
        nodes.append(ir.node("Cast", [value], {"to": ir.DataType.FLOAT16.value}, name="pixels/Cast"))
    for node in nodes:
        node.outputs[0].shape = old.shape
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        inherit_module(node, owner)
    result = nodes[-1].outputs[0]
    result.type = ir.TensorType(old.dtype)
    for node, index in tuple(old.uses()):
        node.replace_input_with(index, planes if node.op_type == "Shape" else result)
    old.name = None
    graph.inputs[0] = planes
    graph.insert_before(next(iter(graph)), nodes)


def _take_planes(model: ir.Model) -> None:
    """Cut ``uint8 NHWC -> Cast -> Transpose`` off and start at the float planes."""
    graph, pixels = model.graph, model.graph.inputs[0]
    cast = next((node for node in pixels.consumers() if node.op_type == "Cast"), None)
    transpose = next(iter(cast.outputs[0].consumers()), None) if cast is not None else None
    if cast is None or transpose is None or transpose.op_type != "Transpose" or pixels.shape is None:
        raise ValueError("expected the uint8 input to feed a Cast and a Transpose")
    batch, height, width, channels = pixels.shape
    planes = ir.Value(
        name=pixels.name,
        shape=ir.Shape([batch, channels, height, width]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    for node, index in tuple(transpose.outputs[0].uses()):
        node.replace_input_with(index, planes)
    for node, index in tuple(pixels.uses()):
        if node is not cast:
            node.replace_input_with(index, planes)  # Shape, which asks for the batch size only
    graph.inputs[0] = planes
    graph.remove([transpose, cast], safe=True)


def _append_softmax(model: ir.Model) -> None:
    """Append a Softmax: nvinfer's classifier takes outputs as probabilities and drops those below zero."""
    logits = model.graph.outputs[0]
    producer = logits.producer()
    if len(model.graph.outputs) != 1 or logits.shape is None or len(logits.shape) != 2 or producer is None:
        raise ValueError("expected a classifier with logits as its only output")
    softmax = ir.node("Softmax", [logits], {"axis": -1}, name=f"{PROBABILITIES}/Softmax")
    value = softmax.outputs[0]
    value.name, value.shape, value.type = PROBABILITIES, logits.shape, logits.type
    inherit_module(softmax, producer)
    model.graph.append(softmax)
    model.graph.outputs[0] = value
