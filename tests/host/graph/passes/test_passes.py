"""Each pass on the smallest graph that needs it, and on the nearest graph it must leave alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.ir_graphs import applied, graph, random, run
from vitexport.host.graph.passes.clean_up import CleanUp
from vitexport.host.graph.passes.fold_constants import FoldConstants
from vitexport.host.graph.passes.fold_uniform import FoldUniform
from vitexport.host.graph.passes.layer_scale import LayerScale
from vitexport.host.graph.passes.linear_form import LinearForm
from vitexport.host.graph.passes.pixel_input import PixelInput
from vitexport.host.graph.passes.softmax_guards import SoftmaxGuards
from vitexport.host.graph.passes.window_mask import WindowMask
from vitexport.inputs.preprocess import PreprocessSpec, Resize, normalize


def test_gemm_between_reshapes_becomes_matmul_and_add_on_tokens() -> None:
    model = graph(
        """g (float[n, 5, 4] x, float[6, 4] w, float[6] b, int64[2] flat, int64[3] back) => (float[n, 5, 6] y) {
            f = Reshape(x, flat)
            z = Gemm <transB = 1> (f, w, b)
            y = Reshape(z, back)
        }""",
        {"w": random(6, 4), "b": random(6), "flat": np.array([-1, 4]), "back": np.array([-1, 5, 6])},
    )
    model.graph.node(0).outputs[0].shape = ir.Shape(["m", 4])
    model.graph.node(1).outputs[0].shape = ir.Shape(["m", 6])
    assert applied(LinearForm(), model, {"x": random(3, 5, 4)}) == {"MatMul": 1, "Add": 1}


def test_gemm_of_vectors_becomes_matmul_and_add() -> None:
    model = graph("g (float[n, 4] x, float[4, 6] w) => (float[n, 6] y) { y = Gemm(x, w) }", {"w": random(4, 6)})
    assert applied(LinearForm(), model, {"x": random(3, 4)}) == {"MatMul": 1}


def test_gemm_with_other_factors_is_left() -> None:
    model = graph(
        "g (float[n, 4] x, float[4, 6] w) => (float[n, 6] y) { y = Gemm <alpha = 0.5> (x, w) }", {"w": random(4, 6)}
    )
    assert applied(LinearForm(), model, {"x": random(3, 4)}, changes=False) == {"Gemm": 1}


@pytest.mark.parametrize("order", ["gamma, h", "h, gamma"])
def test_layer_scale_folds_into_weight_and_bias(order: str) -> None:
    model = graph(
        f"""g (float[n, 5, 4] x, float[4, 6] w, float[6] b, float[1, 1, 6] gamma) => (float[n, 5, 6] y) {{
            m = MatMul(x, w)
            h = Add(m, b)
            y = Mul({order})
        }}""",
        {"w": random(4, 6), "b": random(6), "gamma": random(1, 1, 6)},
    )
    assert applied(LayerScale(), model, {"x": random(2, 5, 4)}) == {"MatMul": 1, "Add": 1}


def test_layer_scale_is_kept_where_the_unscaled_result_is_used_too() -> None:
    model = graph(
        """g (float[n, 5, 4] x, float[4, 6] w, float[6] gamma) => (float[n, 5, 6] y) {
            h = MatMul(x, w)
            s = Mul(h, gamma)
            y = Add(h, s)
        }""",
        {"w": random(4, 6), "gamma": random(6)},
    )
    assert applied(LayerScale(), model, {"x": random(2, 5, 4)}, changes=False)["Mul"] == 1


def test_a_factor_per_token_is_not_taken_for_layer_scale() -> None:
    model = graph(
        """g (float[n, 6, 4] x, float[4, 6] w, float[6, 1] gamma) => (float[n, 6, 6] y) {
            h = MatMul(x, w)
            y = Mul(h, gamma)
        }""",
        {"w": random(4, 6), "gamma": random(6, 1)},
    )
    assert applied(LayerScale(), model, {"x": random(2, 6, 4)}, changes=False)["Mul"] == 1


def test_mask_of_the_batchs_size_that_masks_nothing_goes() -> None:
    model = graph(
        """g (float[n, 2, 3, 3] scores, bool[1, 1, 3, 1] all, float zero, float low, int64[1] one, int64[2] three)
            => (float[n, 2, 3, 3] y) {
            batch = Shape <start = 0, end = 1> (scores)
            size = Concat <axis = 0> (batch, one, three)
            condition = Expand(all, size)
            mask = Where(condition, zero, low)
            y0 = Add(scores, mask)
            y = Relu(y0)
        }""",
        {
            "all": np.ones((1, 1, 3, 1), dtype=bool),
            "zero": np.float32(0),
            "low": np.float32(-3e38),
            "one": np.array([1]),
            "three": np.array([3, 3]),
        },
    )
    model.graph.node(4).outputs[0].shape = ir.Shape(["n", 2, 3, 3])
    assert applied(FoldUniform(), model, {"scores": random(2, 2, 3, 3)}) == {"Relu": 1}


def test_mask_that_masks_something_stays() -> None:
    model = graph(
        """g (float[n, 3] scores, bool[1, 3] some, float zero, float low) => (float[n, 3] y) {
            mask = Where(some, zero, low)
            y = Add(scores, mask)
        }""",
        {"some": np.array([[True, False, True]]), "zero": np.float32(0), "low": np.float32(-9)},
    )
    assert applied(FoldUniform(), model, {"scores": random(2, 3)}, changes=False) == {"Where": 1, "Add": 1}


def test_adding_zeros_that_enlarge_the_result_is_kept() -> None:
    model = graph(
        "g (float[1, 3] x, float[4, 3] zeros) => (float[4, 3] y) { y0 = Add(x, zeros) y = Softmax(y0) }",
        {"zeros": np.zeros((4, 3), dtype=np.float32)},
    )
    assert applied(FoldUniform(), model, {"x": random(1, 3)}, changes=False)["Add"] == 1


_GUARD = """g (float[n, 2, 3, 4] q, float[n, 2, 4, 3] k, float[3, 3] mask, float zero) => (float[n, 2, 3, 3] y) {
    s = MatMul(q, k)
    m = Add(s, mask)
    p = Softmax(m)
    nan = IsNaN(p)
    g = Where(nan, zero, p)
    y = Identity(g)
}"""


def test_nan_guard_behind_a_finite_bias_goes() -> None:
    model = graph(_GUARD, {"mask": random(3, 3), "zero": np.float32(0)})
    feeds = {"q": random(2, 2, 3, 4), "k": random(2, 2, 4, 3)}
    assert not {"IsNaN", "Where"} & applied(SoftmaxGuards(), model, feeds).keys()


def test_nan_guard_stays_where_a_whole_row_is_masked() -> None:
    mask = random(3, 3)
    mask[1] = -np.inf
    model = graph(_GUARD, {"mask": mask, "zero": np.float32(0)})
    feeds = {"q": random(2, 2, 3, 4), "k": random(2, 2, 4, 3)}
    assert applied(SoftmaxGuards(), model, feeds, changes=False)["IsNaN"] == 1


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    model = graph(
        """g (float[n, 4] x, float[3, 4] table, int64[4] rows, float[4, 4] w) => (float[n, 4] y) {
            picked = Gather(table, rows)
            turned = Transpose <perm = [1, 0]> (w)
            both = Add(picked, turned)
            y = MatMul(x, both)
        }""",
        {"table": random(3, 4), "rows": np.array([0, 2, 1, 1]), "w": random(4, 4)},
    )
    assert applied(FoldConstants(), model, {"x": random(2, 4)}) == {"MatMul": 1}


def test_large_transposed_weights_are_not_computed_until_read() -> None:
    weight = random(600, 700) / 100
    model = graph(
        """g (float[n, 700] x, float[600, 700] w) => (float[n, 600] y) {
            t = Transpose <perm = [1, 0]> (w)
            y = MatMul(x, t)
        }""",
        {"w": weight},
    )
    assert applied(FoldConstants(), model, {"x": random(2, 700)}) == {"MatMul": 1}
    folded = model.graph.node(0).inputs[1]
    assert folded is not None and isinstance(folded.const_value, ir.LazyTensor)
    np.testing.assert_array_equal(folded.const_value.numpy(), weight.T)


def test_quantized_weights_are_not_folded_back_to_float() -> None:
    model = graph(
        """g (float[n, 4] x, int8[4, 3] w, float scale, int8 zero) => (float[n, 3] y) {
            d = DequantizeLinear(w, scale, zero)
            y = MatMul(x, d)
        }""",
        {"w": np.arange(12, dtype=np.int8).reshape(4, 3), "scale": np.float32(0.1), "zero": np.int8(0)},
    )
    assert applied(FoldConstants(), model, {"x": random(2, 4)}, changes=False)["DequantizeLinear"] == 1


def test_repeated_and_dead_nodes_go() -> None:
    model = graph(
        """g (float[n, 4] x) => (float[n, 4] y) {
            a = Relu(x)
            b = Relu(x)
            c = Identity(b)
            dead = Exp(x)
            y = Add(a, c)
        }"""
    )
    assert applied(CleanUp(), model, {"x": random(2, 4)}) == {"Relu": 1, "Add": 1}


def test_repeated_window_mask_becomes_a_constant() -> None:
    model = graph(
        """g (float[n, 6, 4, 3] q, float[n, 6, 3, 4] k, float[1, 2, 1, 4, 4] mask, float[1, 6, 4, 4] bias, int64[1] two,
              int64[4] ones, int64[4] flat) => (float[n, 6, 4, 4] y) {
            windows = Shape <start = 0, end = 1> (q)
            images = Div(windows, two)
            size = Concat <axis = 0> (images, ones)
            all = Expand(mask, size)
            rows = Reshape(all, flat)
            added = Add(bias, rows)
            scores = MatMul(q, k)
            masked = Add(scores, added)
            y = Softmax(masked)
        }""",
        {
            "mask": random(1, 2, 1, 4, 4),
            "bias": random(1, 6, 4, 4),
            "two": np.array([2]),
            "ones": np.ones(4, dtype=np.int64),
            "flat": np.array([-1, 1, 4, 4]),
        },
    )
    for index, shape in ((4, ["n", 1, 4, 4]), (5, ["n", 6, 4, 4]), (6, ["n", 6, 4, 4]), (7, ["n", 6, 4, 4])):
        model.graph.node(index).outputs[0].shape = ir.Shape(shape)
    left = applied(WindowMask(), model, {"q": random(6, 6, 4, 3), "k": random(6, 6, 3, 4)})
    assert left == {"MatMul": 1, "Reshape": 2, "Add": 1, "Softmax": 1}


_SPEC = PreprocessSpec(
    image_size=(6, 8),
    resize=Resize(size=(6, 8)),
    mean=(0.5, 0.3, 0.2),
    std=(0.2, 0.3, 0.4),
)
_PATCHES = """g (float[n, 3, 6, 8] x, float[5, 3, 2, 2] w, float[5] b) => (float[n, 5, 3, 4] y) {
    y = Conv <strides = [2, 2], kernel_shape = [2, 2]> (x, w, b)
}"""


def test_pixels_give_what_normalized_planes_gave() -> None:
    weights = {"w": random(5, 3, 2, 2), "b": random(5)}
    pixels = np.random.default_rng(0).integers(0, 256, size=(2, 6, 8, 3), dtype=np.uint8)
    planes = np.stack([normalize(image, _SPEC) for image in pixels])
    wanted = run(graph(_PATCHES, weights), {"x": planes})["y"]
    model = graph(_PATCHES, weights)
    assert PixelInput(_SPEC)(model).modified
    assert [str(axis) for axis in model.graph.inputs[0].shape or ()] == ["n", "6", "8", "3"]
    np.testing.assert_allclose(run(model, {"x": pixels})["y"], wanted, atol=2e-5)


@pytest.mark.parametrize("body", ["y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", "z = Relu(x) y = Conv(z, w, b)"])
def test_pixels_are_refused_where_normalization_cannot_fold(body: str) -> None:
    text = f"g (float[n, 3, 6, 8] x, float[5, 3, 2, 2] w, float[5] b) => (float[n, 5, h, v] y) {{ {body} }}"
    model = graph(text, {"w": random(5, 3, 2, 2), "b": random(5)})
    with pytest.raises(ir.passes.PreconditionError, match="one convolution without padding"):
        PixelInput(_SPEC)(model)
