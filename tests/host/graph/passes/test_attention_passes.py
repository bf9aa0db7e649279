"""Joint and separate projections, whatever their layout, and the attention scale."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from tests.support.ir_graphs import applied, graph, random
from vitexport.host.graph.layers import find_attention, find_linears
from vitexport.host.graph.passes.attention_scale import AttentionScale
from vitexport.host.graph.passes.merge_qkv import MergeQkv
from vitexport.host.graph.passes.split_qkv import SplitQkv

_WEIGHTS = {"w": random(8, 24), "b": random(24)}


def _joint(first: list[int], order: list[int], picks: str, *, batch: int | str = "n") -> ir.Model:
    """Attention with 2 heads of width 4 over 5 tokens, qkv cut from a five-dimensional view."""
    perm = ", ".join(map(str, order))
    leading = batch if isinstance(batch, int) else -1
    model = graph(
        f"""g (float[{batch}, 5, 8] x, float[8, 24] w, float[24] b, int64[5] parts, int64[3] tokens, int64 i0, int64 i1,
              int64 i2, float scale) => (float[{batch}, 5, 8] y) {{
            m = MatMul(x, w)
            a = Add(m, b)
            r = Reshape(a, parts)
            t = Transpose <perm = [{perm}]> (r)
            {picks}
            qs = Mul(q, scale)
            kt = Transpose <perm = [0, 1, 3, 2]> (k)
            s = MatMul(qs, kt)
            p = Softmax(s)
            c = MatMul(p, v)
            h = Transpose <perm = [0, 2, 1, 3]> (c)
            y = Reshape(h, tokens)
        }}""",
        {
            **_WEIGHTS,
            "parts": np.array([leading, 5, *first]),
            "tokens": np.array([leading, 5, 8]),
            **{f"i{index}": np.array(index) for index in range(3)},
            "scale": np.float32(0.3),
        },
    )
    for node in model.graph:
        shape = node.outputs[0].shape
        if shape is not None and batch == "n":
            fixed = [axis if isinstance(axis, int) else "n" for axis in shape]
            node.outputs[0].shape = ir.Shape(fixed)
    return model


_GATHER_FIRST = " ".join(f"{name} = Gather <axis = 0> (t, i{index})" for index, name in enumerate("qkv"))
_GATHER_THIRD = " ".join(f"{name} = Gather <axis = 2> (t, i{index})" for index, name in enumerate("qkv"))


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_five_dimensional_views_become_one_split(batch: int | str) -> None:
    model = _joint([3, 2, 4], [2, 0, 3, 1, 4], _GATHER_FIRST, batch=batch)
    left = applied(SplitQkv(), model, {"x": random(3 if batch == "n" else int(batch), 5, 8)})
    assert left["Split"] == 1 and "Gather" not in left


def test_channels_interleaved_head_by_head_are_reordered_in_the_weight() -> None:
    model = _joint([2, 3, 4], [0, 2, 3, 1, 4], _GATHER_THIRD)
    left = applied(SplitQkv(), model, {"x": random(2, 5, 8)})
    assert left["Split"] == 1 and "Gather" not in left
    (layer,) = [layer for layer in find_linears(model) if layer.role == "qkv"]
    order = np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2).reshape(-1)
    assert layer.weight.const_value is not None
    np.testing.assert_array_equal(layer.weight.const_value.numpy(), _WEIGHTS["w"][:, order])


def test_views_that_mix_tokens_are_left_alone() -> None:
    model = _joint([3, 4, 2], [2, 0, 4, 1, 3], _GATHER_FIRST)
    assert applied(SplitQkv(), model, {"x": random(2, 5, 8)})["Split"] == 1  # head-strided channels are a reordering
    scrambled = graph(
        """g (float[n, 4, 4] x, float[4, 12] w, int64[4] parts) => (float[n, 2, 4, 4] y) {
            a = MatMul(x, w)
            q, k, v = Split <axis = -1, num_outputs = 3> (a)
            qh = Reshape(q, parts)
            kh = Reshape(k, parts)
            vh = Reshape(v, parts)
            kt = Transpose <perm = [0, 1, 3, 2]> (kh)
            s = MatMul(qh, kt)
            p = Softmax(s)
            y = MatMul(p, vh)
        }""",
        {"w": random(4, 12), "parts": np.array([-1, 2, 4, 2])},
    )
    applied(SplitQkv(), scrambled, {"x": random(2, 4, 4)}, changes=False)


class _Idle(SplitQkv):
    """The pass with its postcondition, and nothing done."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, modified=False)


def test_a_projection_left_in_other_views_breaks_the_postcondition() -> None:
    model = _joint([3, 2, 4], [2, 0, 3, 1, 4], _GATHER_FIRST)
    with pytest.raises(ir.passes.PostconditionError, match="joint projections to be cut by one Split"):
        _Idle()(model)
    SplitQkv()(model)
    assert not _Idle()(model).modified


_SEPARATE = """g (float[n, 5, 8] x, float[n, 5, 8] z, float[8, 8] wq, float[8, 8] wk, float[8, 8] wv, float[8] bq,
float[8] bv,
      int64[4] parts, int64[3] tokens) => (float[n, 5, 8] y) {{
    q0 = MatMul(x, wq)
    q1 = Add(q0, bq)
    k1 = MatMul({source}, wk)
    v0 = MatMul(x, wv)
    v1 = Add(bv, v0)
    q2 = Reshape(q1, parts)
    k2 = Reshape(k1, parts)
    v2 = Reshape(v1, parts)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)
    s = MatMul(q, k)
    p = Softmax(s)
    c = MatMul(p, v)
    h = Transpose <perm = [0, 2, 1, 3]> (c)
    y = Reshape(h, tokens)
}}"""
_SEPARATE_WEIGHTS: Mapping[str, NDArray[np.generic]] = {
    "wq": random(8, 8, seed=1),
    "wk": random(8, 8, seed=2),
    "wv": random(8, 8, seed=3),
    "bq": random(8, seed=1),
    "bv": random(8, seed=2),
    "parts": np.array([-1, 5, 2, 4]),
    "tokens": np.array([-1, 5, 8]),
}


def test_separate_projections_merge_and_a_missing_key_bias_becomes_zeros() -> None:
    model = graph(_SEPARATE.format(source="x"), _SEPARATE_WEIGHTS)
    left = applied(MergeQkv(), model, {"x": random(2, 5, 8), "z": random(2, 5, 8)})
    assert (left["MatMul"], left["Add"], left["Split"]) == (3, 1, 1)
    (layer,) = [layer for layer in find_linears(model) if layer.role == "qkv"]
    assert layer.bias is not None and layer.bias.const_value is not None
    np.testing.assert_array_equal(layer.bias.const_value.numpy()[8:16], np.zeros(8))


def test_cross_attention_is_not_merged() -> None:
    model = graph(_SEPARATE.format(source="z"), _SEPARATE_WEIGHTS)
    feeds = {"x": random(2, 5, 8), "z": random(2, 5, 8)}
    assert applied(MergeQkv(), model, feeds, changes=False)["MatMul"] == 5


def test_scale_on_the_query_folds_into_its_columns_only() -> None:
    model = _joint([3, 2, 4], [2, 0, 3, 1, 4], _GATHER_FIRST)
    SplitQkv()(model)
    assert applied(AttentionScale(), model, {"x": random(2, 5, 8)})["Mul"] == 0
    (layer,) = [layer for layer in find_linears(model) if layer.role == "qkv"]
    assert layer.weight.const_value is not None
    np.testing.assert_allclose(
        layer.weight.const_value.numpy()[:, :8], _WEIGHTS["w"][:, :8] * np.float32(0.3), rtol=1e-6
    )
    np.testing.assert_array_equal(layer.weight.const_value.numpy()[:, 8:], _WEIGHTS["w"][:, 8:])


@pytest.mark.parametrize("operation", ["Mul", "Div"])
def test_scale_on_the_scores_folds_too(operation: str) -> None:
    text = _SEPARATE.format(source="x").replace("p = Softmax(s)", f"t = {operation}(s, factor)\n p = Softmax(t)")
    weights = {**_SEPARATE_WEIGHTS, "factor": np.float32(2.5)}
    model = graph(text.replace("int64[3] tokens)", "int64[3] tokens, float factor)"), weights)
    MergeQkv()(model)
    left = applied(AttentionScale(), model, {"x": random(2, 5, 8), "z": random(2, 5, 8)})
    assert left[operation] == 0


def test_scale_through_a_rotation_folds_and_one_after_a_norm_does_not() -> None:
    rotated = _SEPARATE.format(source="x").replace(
        "s = MatMul(q, k)",
        """left, right = Split <axis = -1, num_outputs = 2> (q)
        back = Neg(right)
        turned = Concat <axis = -1> (back, left)
        qc = Mul(q, cos)
        qn = Mul(turned, sin)
        qr = Add(qc, qn)
        scaled = Mul(qr, scale)
        s = MatMul(scaled, k)""",
    )
    extra = ", float[5, 4] cos, float[5, 4] sin, float scale)"
    weights = {**_SEPARATE_WEIGHTS, "cos": random(5, 4, seed=5), "sin": random(5, 4, seed=6), "scale": np.float32(0.3)}
    feeds = {"x": random(2, 5, 8), "z": random(2, 5, 8)}
    model = graph(rotated.replace("int64[3] tokens)", f"int64[3] tokens{extra}"), weights)
    MergeQkv()(model)
    assert applied(AttentionScale(), model, feeds)["Mul"] == 2

    normed = _SEPARATE.format(source="x").replace(
        "s = MatMul(q, k)", "qn = LayerNormalization(q, g)\n scaled = Mul(qn, scale)\n s = MatMul(scaled, k)"
    )
    weights = {**_SEPARATE_WEIGHTS, "g": random(4), "scale": np.float32(0.3)}
    model = graph(normed.replace("int64[3] tokens)", "int64[3] tokens, float[4] g, float scale)"), weights)
    MergeQkv()(model)
    assert applied(AttentionScale(), model, feeds, changes=False)["Mul"] == 1


def test_attention_and_roles_are_found_by_structure_without_any_names() -> None:
    model = graph(_SEPARATE.format(source="x"), _SEPARATE_WEIGHTS)
    (attention,) = find_attention(model)
    assert attention.block == 0 and attention.bias is None
    assert [(layer.role, layer.block) for layer in find_linears(model)] == [("qkv", 0)] * 3
