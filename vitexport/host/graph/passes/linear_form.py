"""Every linear layer becomes MatMul + Add with a constant ``[in, out]`` weight, on tokens as they come."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitexport.host.graph.constants import add_lazy_initializer, is_constant, shape_of, sizes_of
from vitexport.host.graph.scopes import inherit_module

__all__ = ["LinearForm"]


class LinearForm(ir.passes.InPlacePass):
    """Rewrite Gemm as MatMul + Add, and undo Reshape -> Gemm -> Reshape around three-dimensional tokens.

    A compiler fuses MatMul + Add; the Reshapes around a Gemm keep it from fusing across layers. Requires Gemm weights
    to be constant; ensures that no Gemm with a constant weight is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Gemm with alpha = beta = 1."""
        changed = 0
        for node in tuple(model.graph):
            if _is_linear_gemm(node):
                _rewrite(model.graph, node)
                changed += 1
        return ir.passes.PassResult(model, modified=bool(changed))

    def ensures(self, model: ir.Model) -> None:
        """Check that no rewritable Gemm is left."""
        if any(_is_linear_gemm(node) for node in model.graph):
            raise ir.passes.PostconditionError("Expected every linear layer as MatMul + Add, found a Gemm.")


def _is_linear_gemm(node: ir.Node) -> bool:
    if node.op_type != "Gemm" or node.domain != "" or not is_constant(node.inputs[1]):
        return False
    factors = [node.attributes[key].as_float() for key in ("alpha", "beta") if key in node.attributes]
    return all(factor == 1.0 for factor in factors) and not _flag(node, "transA")


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() == 1


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    data, weight = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert data is not None and weight is not None and weight.const_value is not None
    if _flag(node, "transB"):
        tensor = weight.const_value
        rows, columns = sizes_of(tensor)
        weight = add_lazy_initializer(
            graph, f"{weight.name}.T", lambda: np.ascontiguousarray(tensor.numpy().T), tensor.dtype, (columns, rows)
        )
    end, tokens, old = node.outputs[0], _tokens_before(data), [node]
    after = _sole_reshape(end)
    per_channel = bias is None or (bias.shape is not None and all(axis == 1 for axis in list(bias.shape)[:-1]))
    if tokens is not None and after is not None and per_channel and _restores(tokens, after.outputs[0], weight):
        data, end, old = tokens, after.outputs[0], [after, node]
    matmul = inherit_module(ir.node("MatMul", [data, weight]), node)
    new = [matmul]
    if bias is not None:
        new.append(inherit_module(ir.node("Add", [matmul.outputs[0], bias]), node))
    for made in new:
        made.outputs[0].shape, made.outputs[0].type = end.shape, end.type
    new[-1].outputs[0].name = end.name
    graph.insert_before(node, new)
    end.replace_all_uses_with(new[-1].outputs[0], replace_graph_outputs=True)
    graph.remove(old, safe=True)


def _tokens_before(data: ir.Value) -> ir.Value | None:
    """Return the tokens ``[N, L, C]`` that a Reshape flattened to ``data`` ``[N * L, C]``."""
    producer = data.producer()
    if producer is None or producer.op_type != "Reshape":
        return None
    tokens, flat = shape_of(producer.inputs[0]), shape_of(data)
    if tokens is None or flat is None or len(tokens) < 3 or len(flat) != 2 or tokens[-1] != flat[-1]:
        return None
    return producer.inputs[0]


def _sole_reshape(value: ir.Value) -> ir.Node | None:
    consumers = value.consumers()
    if len(consumers) != 1 or value.is_graph_output() or consumers[0].op_type != "Reshape":
        return None
    return consumers[0]


def _restores(tokens: ir.Value, result: ir.Value, weight: ir.Value) -> bool:
    """Return whether the Reshape after the Gemm gives the tokens their axes back."""
    before, after, kernel = shape_of(tokens), shape_of(result), shape_of(weight)
    if before is None or after is None or kernel is None or len(before) != len(after):
        return False
    known = all(
        a == b or not (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(before[1:-1], after[1:-1], strict=True)
    )
    return known and after[-1] == kernel[1]
