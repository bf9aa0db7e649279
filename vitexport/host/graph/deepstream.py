"""The form of a classifier that DeepStream's ``nvinfer`` feeds and reads: planes of raw pixels in, probabilities out."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from vitexport.errors import ExportError
from vitexport.host.graph.file import read_onnx, write_onnx
from vitexport.host.graph.pixel_input import PixelInput
from vitexport.host.graph.scopes import inherit_module
from vitexport.preprocess import PreprocessSpec

__all__ = ["PROBABILITIES", "write_pixel_planes"]

PROBABILITIES = "probabilities"


def write_pixel_planes(model_path: Path, preprocess: PreprocessSpec, out: Path) -> tuple[Path, ...]:
    """Write a model that takes ``float32[N, 3, H, W]`` pixels of 0 to 255 and answers with softmax probabilities.

    Args:
        model_path: A classifier made by this package, with normalized planes or uint8 pixels as its input.
        preprocess: Its normalization, which moves into the patch embedding.
        out: The file to write.

    Returns:
        Companions of the file.

    Raises:
        ExportError: The normalization cannot move into the first layer, or the file is no such classifier.
    """
    try:
        model = read_onnx(model_path)
        if model.graph.inputs[0].dtype != ir.DataType.UINT8:
            PixelInput(preprocess)(model)
        _take_planes(model)
        _answer_probabilities(model)
    except (ir.passes.InvariantError, ir.passes.PassError, ValueError, OSError) as error:
        raise ExportError(
            f"'{model_path}' cannot be turned into a graph that takes pixel planes: {error}",
            "Its first layer must be a float convolution; choose another model of the bundle with --rung.",
        ) from error
    return write_onnx(model, out)


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


def _answer_probabilities(model: ir.Model) -> None:
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
