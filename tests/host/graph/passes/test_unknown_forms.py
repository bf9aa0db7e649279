"""A pass that meets what it does not know leaves it alone: every pass on graphs of other tools and other models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from tests.support.ir_graphs import graph, random, run
from vitexport.host.graph.passes.canonical import canonical_passes, canonicalize
from vitexport.host.graph.passes.layer_scale import LayerScale

ONE = np.array(1.5, dtype=np.float32)
LAYER = "m = MatMul(x, w)\n h = Add(m, b)"
WEIGHTS = {"w": random(4, 6), "b": random(6)}
LINEAR = "g (float[n, 5, 4] x, float[4, 6] w, float[6] b"
ATTENTION = """
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    t = Transpose <perm = [0, 2, 1]> (k)
"""
PROJECTIONS = {"wq": random(4, 4, seed=1), "wk": random(4, 4, seed=2), "wv": random(4, 4, seed=3)}
TOKENS = "g (float[n, 5, 4] x, float[4, 4] wq, float[4, 4] wk, float[4, 4] wv"

FORMS: dict[str, tuple[str, Mapping[str, np.ndarray], tuple[int, ...]]] = {
    "a scalar behind a linear layer": (
        f"{LINEAR}, float gamma) => (float[n, 5, 6] y) {{ {LAYER}\n y = Mul(h, gamma) }}",
        {**WEIGHTS, "gamma": ONE},
        (2, 5, 4),
    ),
    "a factor that adds an axis": (
        f"{LINEAR}, float[1, 1, 1, 6] gamma) => (float[1, n, 5, 6] y) {{ {LAYER}\n y = Mul(h, gamma) }}",
        {**WEIGHTS, "gamma": random(1, 1, 1, 6)},
        (2, 5, 4),
    ),
    "one number for all channels of one": (
        "g (float[n, 5, 4] x, float[4, 1] w, float gamma) => (float[n, 5, 1] y) {"
        " h = MatMul(x, w)\n y = Mul(h, gamma) }",
        {"w": random(4, 1), "gamma": ONE},
        (2, 5, 4),
    ),
    "a quantized weight": (
        """g (float[n, 5, 4] x, int8[4, 4] c, float s, float[4] gamma) => (float[n, 5, 4] y) {
            w = DequantizeLinear(c, s)
            h = MatMul(x, w)
            y = Mul(h, gamma)
        }""",
        {"c": np.ones((4, 4), np.int8), "s": ONE, "gamma": random(4)},
        (2, 5, 4),
    ),
    "attention of quantized projections": (
        """g (float[n, 5, 4] x, int8[4, 4] c, int8[4, 4] d, int8[4, 4] e, float s) => (float[n, 5, 4] y) {
            wq = DequantizeLinear(c, s)
            wk = DequantizeLinear(d, s)
            wv = DequantizeLinear(e, s)
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wv)
            t = Transpose <perm = [0, 2, 1]> (k)
            z = MatMul(q, t)
            p = Softmax <axis = -1> (z)
            y = MatMul(p, v)
        }""",
        {name: np.full((4, 4), number, np.int8) for number, name in enumerate("cde", 1)} | {"s": ONE},
        (2, 5, 4),
    ),
    "scores that are an output": (
        f"{TOKENS}, float scale) => (float[n, 5, 4] y, float[n, 5, 5] z) {{ {ATTENTION}"
        " z = MatMul(q, t)\n f = Mul(z, scale)\n p = Softmax <axis = -1> (f)\n y = MatMul(p, v) }",
        {**PROJECTIONS, "scale": ONE},
        (2, 5, 4),
    ),
    "scaled scores that are an output": (
        f"{TOKENS}, float scale) => (float[n, 5, 4] y, float[n, 5, 5] f) {{ {ATTENTION}"
        " z = MatMul(q, t)\n f = Mul(z, scale)\n p = Softmax <axis = -1> (f)\n y = MatMul(p, v) }",
        {**PROJECTIONS, "scale": ONE},
        (2, 5, 4),
    ),
    "a query that is an output": (
        f"{TOKENS}, float scale) => (float[n, 5, 4] y, float[n, 5, 4] q) {{ {ATTENTION}"
        " z = MatMul(q, t)\n f = Mul(z, scale)\n p = Softmax <axis = -1> (f)\n y = MatMul(p, v) }",
        {**PROJECTIONS, "scale": ONE},
        (2, 5, 4),
    ),
    "a scaled query that is an output": (
        f"{TOKENS}, float scale) => (float[n, 5, 4] y, float[n, 5, 4] f) {{ {ATTENTION}"
        " f = Mul(q, scale)\n z = MatMul(f, t)\n p = Softmax <axis = -1> (z)\n y = MatMul(p, v) }",
        {**PROJECTIONS, "scale": ONE},
        (2, 5, 4),
    ),
    "a scale of more axes than the scores": (
        f"{TOKENS}, float[1, 1, 1, 1] scale) => (float[1, n, 5, 4] y) {{ {ATTENTION}"
        " z = MatMul(q, t)\n f = Mul(z, scale)\n p = Softmax <axis = -1> (f)\n y = MatMul(p, v) }",
        {**PROJECTIONS, "scale": ONE.reshape(1, 1, 1, 1)},
        (2, 5, 4),
    ),
    "a split along the first axis by default": (
        """g (float[6, 5, 4] x, float[4, 4] w, float scale) => (float[2, 5, 4] y) {
            h = MatMul(x, w)
            q, k, v = Split <num_outputs = 3> (h)
            f = Mul(q, scale)
            t = Transpose <perm = [0, 2, 1]> (k)
            z = MatMul(f, t)
            p = Softmax <axis = -1> (z)
            y = MatMul(p, v)
        }""",
        {"w": random(4, 4), "scale": ONE},
        (6, 5, 4),
    ),
    "a transpose without an order, behind a joint projection": (
        """g (float[1, 5, 4] x, float[4, 12] w, int64[2] flat, int64[3] sizes) => (float[5, 5] p) {
            h = MatMul(x, w)
            r = Reshape(h, flat)
            q, k, v = Split <axis = 1> (r, sizes)
            t = Transpose(k)
            z = MatMul(q, t)
            s = Softmax <axis = -1> (z)
            c = MatMul(s, v)
            u = Transpose(c)
            p = MatMul(c, u)
        }""",
        {"w": random(4, 12), "flat": np.array([5, 12]), "sizes": np.array([4, 4, 4])},
        (1, 5, 4),
    ),
    "a joint projection of any number of tokens": (
        """g (float[1, n, 4] x, float[4, 12] w, int64[5] parts, int64 i, int64 j, int64 k) => (float[1, 2, n, 2] y) {
            h = MatMul(x, w)
            r = Reshape(h, parts)
            o = Transpose <perm = [2, 0, 3, 1, 4]> (r)
            a = Gather <axis = 0> (o, i)
            b = Gather <axis = 0> (o, j)
            c = Gather <axis = 0> (o, k)
            t = Transpose <perm = [0, 1, 3, 2]> (b)
            z = MatMul(a, t)
            p = Softmax <axis = -1> (z)
            y = MatMul(p, c)
        }""",
        {"w": random(4, 12), "parts": np.array([1, -1, 3, 2, 2]), **{n: np.array(i) for i, n in enumerate("ijk")}},
        (1, 5, 4),
    ),
    "a number added to the scores behind a guard": (
        f"{TOKENS}, float bias, float zero) => (float[n, 5, 4] y) {{ {ATTENTION}"
        " z = MatMul(q, t)\n f = Add(z, bias)\n p = Softmax <axis = -1> (f)\n"
        " c = IsNaN(p)\n g = Where(c, zero, p)\n y = MatMul(g, v) }",
        {**PROJECTIONS, "bias": ONE, "zero": np.array(0, np.float32)},
        (2, 5, 4),
    ),
    "a guard behind a softmax along another axis": (
        f"{TOKENS}, float[5, 5] mask, float zero) => (float[n, 5, 4] y) {{ {ATTENTION}"
        " z = MatMul(q, t)\n f = Add(z, mask)\n p = Softmax <axis = 1> (f)\n"
        " c = IsNaN(p)\n g = Where(c, zero, p)\n y = MatMul(g, v) }",
        {
            **PROJECTIONS,
            "mask": np.where(np.arange(5) == 2, -np.inf, 0).astype(np.float32)[None].repeat(5, 0),
            "zero": np.array(0, np.float32),
        },
        (2, 5, 4),
    ),
    "a bias for each row between reshapes": (
        """g (float[2, 5, 4] x, float[4, 6] w, float[10, 6] b, int64[2] flat, int64[3] back) => (float[2, 5, 6] y) {
            f = Reshape(x, flat)
            z = Gemm(f, w, b)
            y = Reshape(z, back)
        }""",
        {"w": random(4, 6), "b": random(10, 6), "flat": np.array([10, 4]), "back": np.array([2, 5, 6])},
        (2, 5, 4),
    ),
    "numbers and empty inputs": (
        """g (float[n, 4] x, float low) => (float[n, 4] y) {
            c = Clip(x, low)
            s = Constant <value_float = 2.0> ()
            m = Mul(c, s)
            y = Clip(m, , s)
        }""",
        {"low": np.array(-1, np.float32)},
        (3, 4),
    ),
}


def feed(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"x": random(*shape, seed=9)}


@pytest.mark.parametrize("name", FORMS)
def test_every_pass_leaves_alone_what_it_does_not_know(name: str) -> None:
    text, weights, shape = FORMS[name]
    for step in canonical_passes():
        model = graph(text, weights)
        before = run(model, feed(shape))
        step(model)
        after = run(model, feed(shape))
        assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in before.items()}
        for key, wanted in before.items():
            np.testing.assert_allclose(
                after[key], wanted, rtol=1e-4, atol=1e-5, err_msg=f"{type(step).__name__}: {key}"
            )


@pytest.mark.parametrize("name", FORMS)
def test_all_passes_in_order_keep_the_answers(name: str) -> None:
    text, weights, shape = FORMS[name]
    model = graph(text, weights)
    before = run(model, feed(shape))
    canonicalize(model)
    for key, wanted in run(model, feed(shape)).items():
        np.testing.assert_allclose(wanted, before[key], rtol=1e-4, atol=1e-5, err_msg=key)


def test_the_layer_scale_of_one_channel_still_folds() -> None:
    model = graph(
        "g (float[n, 5, 4] x, float[4, 1] w, float[1] gamma) => (float[n, 5, 1] y) {"
        " h = MatMul(x, w)\n y = Mul(h, gamma) }",
        {"w": random(4, 1), "gamma": random(1)},
    )
    assert LayerScale()(model).modified and [node.op_type for node in model.graph] == ["MatMul"]
