"""Rows that nothing reads are not computed, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.ir_graphs import applied, graph, random
from vitexport.host.graph.passes.read_tokens import ReadTokens

_TOKENS, _WIDTH = 6, 8
_WEIGHTS = {
    **{name: random(_WIDTH, _WIDTH, seed=seed) for seed, name in enumerate(("wk", "wv", "wq", "wo", "w1", "w2"))},
    **{name: random(_WIDTH, seed=seed) for seed, name in enumerate(("g", "b"))},
    "bias": random(1, 2, _TOKENS, _TOKENS),
    "zero": np.array(0),
    "first": np.array([0]),
    "four": np.array([4]),
    "ends": np.array([5]),
    "axes": np.array([1]),
    "heads": np.array([-1, _TOKENS, 2, _WIDTH // 2]),
    "flat": np.array([-1, _TOKENS, _WIDTH]),
}
_BLOCK = """
    n = LayerNormalization(x, g, b)
    q0 = MatMul(n, wq)
    q1 = Reshape(q0, heads)
    q = Transpose<perm = [0, 2, 1, 3]>(q1)
    k0 = MatMul(n, wk)
    k1 = Reshape(k0, heads)
    k = Transpose<perm = [0, 2, 3, 1]>(k1)
    v0 = MatMul(n, wv)
    v1 = Reshape(v0, heads)
    v = Transpose<perm = [0, 2, 1, 3]>(v1)
    s = MatMul(q, k)
    sb = Add(s, bias)
    p = Softmax(sb)
    c = MatMul(p, v)
    ct = Transpose<perm = [0, 2, 1, 3]>(c)
    cf = Reshape(ct, flat)
    o = MatMul(cf, wo)
    y = Add(x, o)
    m = LayerNormalization(y, g, b)
    h = MatMul(m, w1)
    a = Gelu(h)
    f = MatMul(a, w2)
    z = Add(y, f)
"""


def _model(read: str, outputs: str = "float[N, 8] out", before: str = "") -> ir.Model:
    inputs = ", ".join(
        f"{'int64' if array.dtype.kind == 'i' else 'float'}[{','.join(map(str, array.shape))}] {name}"
        if array.ndim
        else f"int64 {name}"
        for name, array in _WEIGHTS.items()
    )
    text = f"block (float[N, {_TOKENS}, {_WIDTH}] x, {inputs}) => ({outputs}) {{ {before} {_BLOCK} {read} }}"
    return graph(text, _WEIGHTS)


def _rows(model: ir.Model, kind: str) -> list[object]:
    return [node.outputs[0].shape[1] for node in model.graph if node.op_type == kind and node.outputs[0].shape]


_FEEDS = {"x": random(3, _TOKENS, _WIDTH)}


def test_a_block_in_front_of_the_class_token_computes_it_alone() -> None:
    model = _model("out = Gather<axis = 1>(z, zero)")
    counts = applied(ReadTokens(), model, _FEEDS)
    tokens = {
        str(node.inputs[1].name): node.outputs[0].shape[1]
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and node.outputs[0].shape
    }
    assert [tokens[name] for name in ("wq", "wk", "wv", "wo", "w1", "w2")] == [1, _TOKENS, _TOKENS, 1, 1, 1]
    assert counts["Gather"] == 3  # of the residual, of what the query is made of, and the head's own
    bias = next(node.inputs[1] for node in model.graph if node.op_type == "Add" and node.inputs[0].name == "s")
    assert bias is not None
    assert list(bias.shape or ()) == [1, 2, 1, _TOKENS]


def test_two_tokens_read_apart_keep_their_order() -> None:
    read = "late = Slice(z, four, ends, axes) early = Gather<axis = 1>(z, first) out = Sub(late, early)"
    model = _model(read, "float[N, 1, 8] out")
    applied(ReadTokens(), model, _FEEDS)
    assert _rows(model, "Gelu") == [2]


@pytest.mark.parametrize(
    ("read", "outputs"),
    [
        ("out = ReduceMean<keepdims = 0>(z, axes)", "float[N, 8] out"),
        ("out = Gather<axis = 1>(z, zero) all = Identity(z)", "float[N, 8] out, float[N, 6, 8] all"),
    ],
    ids=["pooled over all tokens", "all tokens are an output"],
)
def test_what_reads_every_token_is_left_alone(read: str, outputs: str) -> None:
    model = _model(read, outputs)
    applied(ReadTokens(), model, _FEEDS, changes=False)
    assert _rows(model, "Gelu") == [_TOKENS]


def test_a_value_needed_whole_elsewhere_is_computed_whole() -> None:
    read = "out = Gather<axis = 1>(z, zero) pooled = ReduceMean<keepdims = 0>(a, axes)"
    model = _model(read, "float[N, 8] out, float[N, 8] pooled")
    applied(ReadTokens(), model, _FEEDS)
    assert _rows(model, "Gelu") == [_TOKENS]
    fc2 = next(node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].name == "w2")
    assert fc2.outputs[0].shape is not None
    assert fc2.outputs[0].shape[1] == 1


class _Idle(ReadTokens):
    """The pass with its postcondition, and nothing done."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, modified=False)


def test_tokens_that_nothing_reads_break_the_postcondition() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="found 6 in 'z', of which 1 are read"):
        _Idle()(_model("out = Gather<axis = 1>(z, zero)"))
    assert not _Idle()(_model("out = ReduceMean<keepdims = 0>(z, axes)", "float[N, 8] out")).modified


def test_two_heads_that_read_the_same_token_leave_nothing_to_narrow() -> None:
    """What is computed whole for the second head, when the first is narrowed, is narrowed with the second."""
    heads = """
        n1 = LayerNormalization(z, g, b)
        d0 = MatMul(n1, w2)
        c1 = Gather<axis = 1>(d0, zero)
        n2 = LayerNormalization(z, b, g)
        d1 = MatMul(n2, w1)
        c2 = Gather<axis = 1>(d1, zero)
        out = Add(c1, c2)
    """
    model = _model(heads)
    applied(ReadTokens(), model, _FEEDS)
    assert _rows(model, "Gelu") == [1]
