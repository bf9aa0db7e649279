"""A joint qkv projection is cut by one Split along its channels; q, k and v are then plain views."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.host.graph.constants import add_initializer, add_lazy_initializer, is_constant, shape_of, sizes_of
from vitexport.host.graph.index_maps import IndexMap, apply_view, static_shape
from vitexport.host.graph.layers import LinearLayer, find_linears
from vitexport.host.graph.scopes import inherit_module

__all__ = ["SplitQkv", "head_views"]

_VIEWS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather"})


@dataclass(frozen=True)
class _Part:
    """One of q, k, v: the value to replace, ``[N, heads, tokens, dim]`` (or its two last axes swapped), and its
    channels.
    """

    value: ir.Value
    channels: tuple[int, ...]
    heads: int
    tokens: int
    width: int
    swapped: bool


class SplitQkv(ir.passes.InPlacePass):
    """Rewrite the views after a joint qkv projection as Split -> Reshape -> Transpose.

    timm cuts a five-dimensional tensor by Slice and Squeeze, others order the channels head by head. Each view is
    identified by where its elements come from, so any layout is understood; channels are reordered in the weight where
    needed. Requires shapes on values; ensures that every joint projection that is understood is consumed by one Split.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every joint projection whose views are all understood."""
        changed = False
        for layer in find_linears(model):
            parts = _rewritable(layer)
            if parts is not None:
                _rewrite(model.graph, layer, parts)
                changed = True
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing rewritable is left."""
        left = [layer.name for layer in find_linears(model) if _rewritable(layer) is not None]
        if left:
            raise ir.passes.PostconditionError(f"Expected joint projections to be cut by one Split, found {left[:3]}.")


def _rewritable(layer: LinearLayer) -> tuple[_Part, ...] | None:
    """Return the parts of a joint projection that something else than one Split cuts, or None."""
    if layer.role != "qkv" or layer.matmul.op_type != "MatMul" or _is_canonical(layer):
        return None
    readable = is_constant(layer.weight) and (layer.bias is None or is_constant(layer.bias))
    return _parts(layer) if readable else None


def _is_canonical(layer: LinearLayer) -> bool:
    consumers = [node for node in layer.output.consumers() if _is_used(node)]
    return len(consumers) == 1 and consumers[0].op_type == "Split"


def _is_used(node: ir.Node) -> bool:
    return any(output.uses() or output.is_graph_output() for output in node.outputs)


def _parts(layer: LinearLayer) -> tuple[_Part, ...] | None:
    """Return the views of a projection's output in the order q, k, v, or None if it is not joint or not understood."""
    shape, axes = static_shape(layer.output), shape_of(layer.output)
    if shape is None or axes is None or len(shape) != 3 or any(not isinstance(axis, int) for axis in axes[1:]):
        return None
    tokens, width = shape[1:]
    parts: list[_Part] = []
    start = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    if not _walk(layer.output, start, tokens, width, parts) or len(parts) != 3:
        return None
    if len({(part.heads, part.width, part.tokens) for part in parts}) != 1:
        return None
    order = {id(value): index for index, value in enumerate(_attention_order(parts))}
    parts.sort(key=lambda part: order.get(id(part.value), 3))
    if sorted(c for part in parts for c in part.channels) != list(range(width)):
        return None
    return tuple(parts)


def _attention_order(parts: list[_Part]) -> list[ir.Value]:
    """Return the values by their smallest channel: q, k, v in every layout known."""
    return [part.value for part in sorted(parts, key=lambda part: min(part.channels))]


def _walk(value: ir.Value, source: IndexMap, tokens: int, width: int, parts: list[_Part]) -> bool:
    """Follow views from ``value``; collect where they end as heads of q, k or v. False if one ends otherwise."""
    part = _as_part(value, source, tokens, width)
    consumers = value.consumers()
    if part is not None and not (len(consumers) == 1 and _swaps_last_axes(consumers[0])):
        parts.append(part)
        return True
    if not consumers or value.is_graph_output() or any(node.op_type not in _VIEWS for node in consumers):
        return False
    for node in dict.fromkeys(consumers):
        for output, view in zip(node.outputs, apply_view(node, source), strict=True):
            if view is None or (output.uses() and not _walk(output, view, tokens, width, parts)):
                return False
    return True


def _swaps_last_axes(node: ir.Node) -> bool:
    order = node.attributes.get("perm")
    return node.op_type == "Transpose" and order is not None and tuple(order.as_ints()) == (0, 1, 3, 2)


def _as_part(value: ir.Value, source: IndexMap, tokens: int, width: int) -> _Part | None:
    """Return the part if element [b, h, n, d] comes from image b, token n and a channel given by h and d."""
    if source.ndim != 4:
        return None
    for swapped in (False, True):
        heads = source.transpose(0, 1, 3, 2) if swapped else source
        images, _, length, dim = heads.shape
        row, channel = np.divmod(heads, width)
        expected = np.arange(images)[:, None, None, None] * tokens + np.arange(tokens)[None, None, :, None]
        if length == tokens and (row == expected).all() and (channel == channel[:1, :, :1]).all():
            order = tuple(int(c) for c in channel[0, :, 0].reshape(-1))
            return _Part(value, order, heads.shape[1], tokens, dim, swapped)
    return None


def _rewrite(graph: ir.Graph, layer: LinearLayer, parts: tuple[_Part, ...]) -> None:
    order = np.array([channel for part in parts for channel in part.channels])
    if not np.array_equal(order, np.arange(len(order))):
        _reorder(graph, layer, order)
    after = layer.add or layer.matmul
    sizes = add_initializer(graph, "qkv_sizes", np.array([len(part.channels) for part in parts], dtype=np.int64))
    split = ir.node("Split", [layer.output, sizes], {"axis": -1}, num_outputs=len(parts))
    inherit_module(split, layer.matmul)
    new = [split]
    for part, output in zip(parts, split.outputs, strict=True):
        output.type = layer.output.type
        output.shape = ir.Shape([*list(layer.output.shape or ())[:2], len(part.channels)])
        consumer = next(iter(part.value.consumers()), after)
        views = head_views(graph, output, part.value, part.heads, part.width, part.swapped)
        new.extend(inherit_module(view, consumer) for view in views)
    graph.insert_after(after, new)
    for part in parts:
        _remove_unused(graph, part.value.producer())


def _remove_unused(graph: ir.Graph, node: ir.Node | None) -> None:
    """Remove a view that nothing uses any more, and those before it that only it used."""
    while node is not None and not _is_used(node):
        source = node.inputs[0]
        graph.remove(node, safe=True)
        node = None if source is None else source.producer()


def head_views(
    graph: ir.Graph, source: ir.Value, target: ir.Value, heads: int, width: int, swapped: bool
) -> tuple[ir.Node, ir.Node]:
    """Return Reshape and Transpose from ``[N, L, heads * width]`` to ``target``'s ``[N, heads, L, width]``, which they
    replace.

    Args:
        graph: Where the Reshape's target shape is registered.
        source: Channels of q, k or v.
        target: The value whose uses the result takes over.
        heads: Number of heads.
        width: Channels per head.
        swapped: Whether the two last axes are swapped (the key).
    """
    assert source.shape is not None
    tokens = source.shape[1]
    assert isinstance(tokens, int)
    first = source.shape[0] if isinstance(source.shape[0], int) else -1
    shape = add_initializer(graph, "head_shape", np.array([first, tokens, heads, width], dtype=np.int64))
    reshape = ir.node("Reshape", [source, shape])
    reshape.outputs[0].shape = ir.Shape([source.shape[0], tokens, heads, width])
    reshape.outputs[0].type = source.type
    order = (0, 2, 3, 1) if swapped else (0, 2, 1, 3)
    transpose = ir.node("Transpose", [reshape.outputs[0]], {"perm": order})
    transpose.outputs[0].shape, transpose.outputs[0].type = target.shape, source.type
    target.replace_all_uses_with(transpose.outputs[0])
    return reshape, transpose


def _reorder(graph: ir.Graph, layer: LinearLayer, order: NDArray[np.integer]) -> None:
    """Reorder a projection's output channels."""
    for node, value in ((layer.matmul, layer.weight), (layer.add, layer.bias)):
        if node is None or value is None:
            continue
        tensor = value.const_value
        assert tensor is not None
        compute = partial(_columns, tensor, order)
        reordered = add_lazy_initializer(graph, str(value.name), compute, tensor.dtype, sizes_of(tensor))
        node.replace_input_with(list(node.inputs).index(value), reordered)


def _columns(tensor: ir.TensorProtocol, order: NDArray[np.integer]) -> NDArray[np.generic]:
    return np.ascontiguousarray(tensor.numpy()[..., order])
