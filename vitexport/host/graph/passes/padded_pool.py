"""The largest value of a window that reaches into zeros is not that of a window that reaches into nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import add_initializer, array_of, scalar_of, shape_of
from vitexport.host.graph.scopes import inherit_module

__all__ = ["PaddedPool"]


class PaddedPool(ir.passes.InPlacePass):
    """Rewrite ``MaxPool(Pad(x, v))`` as ``Max(MaxPool(x, pads), border)``, border ``v`` where a window reaches outside.

    ONNX Runtime's PadFusion (seen in 1.31) puts the zeros of a Pad into the pads of the MaxPool behind it, which are
    smaller than any number: at the border of a map with negative values, as behind BiT's stem, the result is another
    one. In this form every runtime gives the same.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every pool behind a constant padding."""
        found = list(_padded_pools(model.graph))
        for pool in found:
            _rewrite(model.graph, pool)
        return ir.passes.PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing rewritable is left."""
        left = [pool.node.name for pool in _padded_pools(model.graph)]
        if left:
            raise ir.passes.PostconditionError(f"Expected pools without a Pad before them, found {left[:3]}.")


@dataclass(frozen=True)
class _PaddedPool:
    """A MaxPool over ``[N, C, H, W]``, what is padded, by how much before and after, and with which value."""

    node: ir.Node
    source: ir.Value
    before: tuple[int, int]
    after: tuple[int, int]
    value: float
    size: tuple[int, int]


def _padded_pools(graph: ir.Graph) -> Iterator[_PaddedPool]:
    for node in tuple(graph):
        producer = node.inputs[0].producer() if node.op_type == "MaxPool" and node.inputs[0] is not None else None
        if producer is None or producer.op_type != "Pad" or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            continue
        source, pads, size = producer.inputs[0], array_of(producer.inputs[1]), shape_of(producer.inputs[0])
        given = producer.inputs[2] if len(producer.inputs) > 2 else None
        value = 0.0 if given is None else scalar_of(given)
        plain = producer.attributes.get_string("mode", "constant") == "constant" and len(producer.inputs) < 4
        own = any(node.attributes.get_ints("pads", ())) or node.attributes.get_int("ceil_mode", False)
        if not plain or own or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            continue
        if source is None or pads is None or value is None or size is None or pads.size != 8:
            continue
        amounts = [int(amount) for amount in pads]
        height, width = size[2:]
        if any(amounts[:2] + amounts[4:6]) or min(amounts) < 0 or not any(amounts) or not np.isfinite(value):
            continue
        if max(amounts) >= min(node.attributes.get_ints("kernel_shape")):
            continue  # a window of padding alone: ONNX allows no such pads
        if isinstance(height, int) and isinstance(width, int):
            yield _PaddedPool(node, source, (amounts[2], amounts[3]), (amounts[6], amounts[7]), value, (height, width))


def _rewrite(graph: ir.Graph, pool: _PaddedPool) -> None:
    output = pool.node.outputs[0]
    attributes = {name: attribute.value for name, attribute in pool.node.attributes.items()}
    inside = ir.node("MaxPool", [pool.source], {**attributes, "pads": (*pool.before, *pool.after)})
    border = add_initializer(graph, "pool_border", _border(pool))
    both = ir.node("Max", [inside.outputs[0], border])
    for made in (inside, both):
        inherit_module(made, pool.node)
        made.outputs[0].type, made.outputs[0].shape = output.type, output.shape
    graph.insert_before(pool.node, [inside, both])
    output.replace_all_uses_with(both.outputs[0])
    pad = pool.node.inputs[0].producer() if pool.node.inputs[0] is not None else None
    graph.remove(pool.node, safe=True)
    if pad is not None and not pad.outputs[0].uses() and not pad.outputs[0].is_graph_output():
        graph.remove(pad, safe=True)


def _border(pool: _PaddedPool) -> NDArray[np.float32]:
    """Return ``float32[1, 1, rows, columns]``: the padding's value where a window reaches into it, else the lowest."""
    attributes = pool.node.attributes
    kernel = attributes.get_ints("kernel_shape")
    strides, dilations = (attributes.get_ints(name, (1, 1)) for name in ("strides", "dilations"))
    reaches = []
    for axis in range(2):
        extent = pool.before[axis] + pool.size[axis] + pool.after[axis]
        span = dilations[axis] * (kernel[axis] - 1) + 1
        starts = np.arange((extent - span) // strides[axis] + 1) * strides[axis]
        taken = starts[:, None] + dilations[axis] * np.arange(kernel[axis])
        outside = (taken < pool.before[axis]) | (taken >= pool.before[axis] + pool.size[axis])
        reaches.append(np.asarray(outside.any(axis=1)))
    border = np.full((1, 1, len(reaches[0]), len(reaches[1])), np.finfo(np.float32).min, dtype=np.float32)
    border[0, 0, np.logical_or.outer(*reaches)] = pool.value
    return border
