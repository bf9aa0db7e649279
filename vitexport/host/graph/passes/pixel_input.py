"""A graph that takes ``uint8`` pixels as a camera gives them; the normalization moves into the patch embedding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import add_initializer, is_constant
from vitexport.host.graph.scopes import inherit_module
from vitexport.inputs.preprocess import PreprocessSpec

__all__ = ["PixelInput"]


class PixelInput(ir.passes.InPlacePass):
    """Turn the input ``float32[N, C, H, W]`` into ``uint8[N, H, W, C]`` and fold ``(p * rescale - mean) / std`` into
    the Conv.

    With ``s = rescale / std`` and ``t = -mean / std`` per channel, the Conv's weight becomes ``w * s`` and its bias
    ``b + sum(w * t)``: exact where the Conv does not pad. Requires the input to feed one Conv without padding; ensures
    a uint8 input.

    Args:
        preprocess: Where rescale, mean and std come from.
    """

    def __init__(self, preprocess: PreprocessSpec) -> None:
        self._scale = preprocess.rescale / np.asarray(preprocess.std, dtype=np.float64)
        self._shift = -np.asarray(preprocess.mean, dtype=np.float64) / np.asarray(preprocess.std, dtype=np.float64)

    def requires(self, model: ir.Model) -> None:
        """Check that normalization can move into the first Conv."""
        if _first_conv(model) is None:
            raise ir.passes.PreconditionError(
                "Expected the input to feed one convolution without padding and with constant weights."
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the input and fold the normalization."""
        conv = _first_conv(model)
        assert conv is not None
        graph, old = model.graph, model.graph.inputs[0]
        self._fold(graph, conv)
        batch, channels, height, width = old.shape if old.shape is not None else (None,) * 4
        pixels = ir.Value(
            name=old.name, shape=ir.Shape([batch, height, width, channels]), type=ir.TensorType(ir.DataType.UINT8)
        )
        cast = ir.node("Cast", [pixels], {"to": ir.DataType.FLOAT.value}, name="pixels/Cast")
        planes = ir.node("Transpose", [cast.outputs[0]], {"perm": (0, 3, 1, 2)}, name="pixels/Transpose")
        cast.outputs[0].shape = pixels.shape
        planes.outputs[0].shape = old.shape
        for node in (cast, planes):
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            inherit_module(node, conv)
        for node, index in tuple(old.uses()):
            reads_values = node.op_type != "Shape"
            node.replace_input_with(index, planes.outputs[0] if reads_values else pixels)
        graph.inputs[0] = pixels
        first = next(iter(graph))
        graph.insert_before(first, [cast, planes])
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check the new input."""
        if model.graph.inputs[0].dtype != ir.DataType.UINT8:
            raise ir.passes.PostconditionError(f"Expected a uint8 input, found {model.graph.inputs[0].dtype}.")

    def _fold(self, graph: ir.Graph, conv: ir.Node) -> None:
        weight = conv.inputs[1]
        bias = conv.inputs[2] if len(conv.inputs) > 2 else None
        assert weight is not None and weight.const_value is not None
        kernel = weight.const_value.numpy().astype(np.float64)
        offset: NDArray[np.float64] = (kernel * self._shift[None, :, None, None]).sum(axis=(1, 2, 3))
        if bias is not None and bias.const_value is not None:
            offset = offset + bias.const_value.numpy()
        scaled = kernel * self._scale[None, :, None, None]
        conv.replace_input_with(1, add_initializer(graph, f"{weight.name}.pixels", scaled.astype(np.float32)))
        conv.resize_inputs(3)
        conv.replace_input_with(2, add_initializer(graph, f"{weight.name}.pixels_bias", offset.astype(np.float32)))


def _first_conv(model: ir.Model) -> ir.Node | None:
    """Return the Conv that alone reads the input's values, if normalization can fold into it."""
    if len(model.graph.inputs) != 1:
        return None
    consumers = {node for node in model.graph.inputs[0].consumers() if node.op_type != "Shape"}
    if len(consumers) != 1:
        return None
    conv = consumers.pop()
    if conv.op_type != "Conv" or not is_constant(conv.inputs[1]):
        return None
    if len(conv.inputs) > 2 and conv.inputs[2] is not None and not is_constant(conv.inputs[2]):
        return None
    groups = conv.attributes["group"].as_int() if "group" in conv.attributes else 1
    pads = conv.attributes["pads"].as_ints() if "pads" in conv.attributes else ()
    padding = conv.attributes["auto_pad"].as_string() if "auto_pad" in conv.attributes else "NOTSET"
    return conv if groups == 1 and not any(pads) and padding in ("NOTSET", "VALID") else None
