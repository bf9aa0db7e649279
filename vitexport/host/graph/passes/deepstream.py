"""The form of a classifier that DeepStream's ``nvinfer`` feeds and reads: planes of pixels in, probabilities out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import ExportError
from vitexport.host.graph.constants import add_initializer
from vitexport.host.graph.file import read_onnx, write_onnx
from vitexport.host.graph.scopes import inherit_module
from vitexport.inputs.preprocess import PreprocessSpec
from vitexport.scoring import Scoring

__all__ = ["PROBABILITIES", "VALUES", "label_output", "write_pixel_planes"]

PROBABILITIES = "probabilities"
VALUES = "values"


def label_output(index: int) -> str:
    """Return the name of the output with the probability of one label."""
    return f"label_{index}"


def write_pixel_planes(model_path: Path, metadata: ModelMetadata, out: Path) -> tuple[Path, ...]:
    """Write a model that takes ``float32[N, 3, H, W]`` pixels of 0 to 255 and puts out what nvinfer reads.

    A softmax over classes becomes one output :data:`PROBABILITIES`. nvinfer takes the best entry of each output as one
    attribute, so labels that may be there together become an output ``[N, 1]`` each, see :func:`label_output`. The
    values of a regression stay as they are, named :data:`VALUES`.

    The normalization becomes three nodes that compute what :func:`~vitexport.inputs.preprocess.normalize` computes, in
    its order: folding it into the first layer would change last bits, and a quantized model turns those into whole
    integers.

    Args:
        model_path: A classifier made by this package, with normalized planes or uint8 pixels as its input.
        metadata: Its normalization and its kind of head.
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
            _normalize(model, metadata.preprocess)
        _append_scores(model, metadata.scoring)
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


def _append_scores(model: ir.Model, scoring: Scoring) -> None:
    """Append what makes probabilities of the logits: nvinfer takes outputs as such and drops those below zero."""
    logits = model.graph.outputs[0]
    producer = logits.producer()
    if len(model.graph.outputs) != 1 or logits.shape is None or len(logits.shape) != 2 or producer is None:
        raise ValueError("expected a classifier with logits as its only output")
    if scoring == "none":
        logits.name = VALUES
        return
    if scoring == "softmax":
        score = ir.node("Softmax", [logits], {"axis": -1}, name=f"{PROBABILITIES}/Softmax")
    else:
        score = ir.node("Sigmoid", [logits], name=f"{PROBABILITIES}/Sigmoid")
    value = score.outputs[0]
    value.name, value.shape, value.type = PROBABILITIES, logits.shape, logits.type
    inherit_module(score, producer)
    model.graph.append(score)
    labels = logits.shape[1]
    if not isinstance(labels, int):
        raise ValueError(f"expected a fixed number of labels, found {labels}")  # noqa: TRY004  # of the graph
    model.graph.outputs[:] = [value] if scoring == "softmax" else _one_by_one(model.graph, score, labels)


def _one_by_one(graph: ir.Graph, score: ir.Node, labels: int) -> list[ir.Value]:
    """Split ``[N, labels]`` into one value ``[N, 1]`` per label."""
    both = score.outputs[0]
    if labels == 1:
        both.name = label_output(0)
        return [both]
    split = ir.node("Split", [both], {"axis": -1, "num_outputs": labels}, num_outputs=labels, name="labels/Split")
    for index, value in enumerate(split.outputs):
        value.name, value.type = label_output(index), both.type
        value.shape = ir.Shape([both.shape[0] if both.shape else "batch", 1])
    inherit_module(split, score)
    graph.append(split)
    return list(split.outputs)
