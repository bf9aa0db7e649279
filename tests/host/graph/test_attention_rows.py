"""Dividing rows of probabilities by their maxima changes no output, in every opset, and is told from what is broken."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests.support.ir_graphs import graph, random, run
from vitexport.host.graph.attention_rows import divide_rows, rows_of
from vitexport.host.graph.layers import find_attention, find_linears

HEADS, TOKENS, WIDTH = 2, 5, 4


def attention(*, batch: int | str = "n", opset: int = 20) -> ir.Model:
    """Two heads over one tensor as query, key and value, and the projection after them."""
    return graph(
        f"""g (float[{batch}, {HEADS}, {TOKENS}, {WIDTH}] x, float[8, 8] w, int64[3] tokens)
              => (float[{batch}, {TOKENS}, 8] y) {{
            k = Transpose <perm = [0, 1, 3, 2]> (x)
            s = MatMul(x, k)
            p = Softmax(s)
            c = MatMul(p, x)
            h = Transpose <perm = [0, 2, 1, 3]> (c)
            r = Reshape(h, tokens)
            y = MatMul(r, w)
        }}""",
        {"w": random(8, 8), "tokens": np.array([batch if isinstance(batch, int) else -1, TOKENS, 8])},
        opset=opset,
    )


@pytest.mark.parametrize("batch", ["n", 2])
@pytest.mark.parametrize("opset", [17, 18, 20])
def test_outputs_stay_and_the_file_is_valid(opset: int, batch: int | str) -> None:
    model = attention(batch=batch, opset=opset)
    feeds = {"x": 3 * random(2, HEADS, TOKENS, WIDTH)}
    before = run(model, feeds)["y"]
    (one,) = find_attention(model)
    divide_rows(model, one)
    np.testing.assert_allclose(run(model, feeds)["y"], before, rtol=1e-5, atol=1e-6)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (node,) = [node for node in model.graph if node.op_type == "ReduceMax"]
    assert ("axes" in node.attributes) == (opset < 18)
    assert len(node.inputs) == (1 if opset < 18 else 2)


def test_shapes_hold_for_every_batch_size(capfd: pytest.CaptureFixture[str]) -> None:
    model = attention()
    divide_rows(model, *find_attention(model))
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    for size in (1, 3):
        assert session.run(None, {"x": random(size, HEADS, TOKENS, WIDTH)})[0].shape == (size, TOKENS, 8)
    assert "arning" not in capfd.readouterr().err


def test_the_attention_is_still_found_and_its_output_keeps_its_name() -> None:
    model = attention()
    (one,) = find_attention(model)
    assert rows_of(one) == "plain"
    divide_rows(model, one)
    (found,) = find_attention(model)
    assert (found.softmax, found.scores, found.context) == (one.softmax, one.scores, one.context)
    assert rows_of(found) == "divided"
    assert [layer.role for layer in find_linears(model)] == ["proj"]
    (multiply,) = [node for node in model.graph if node.op_type == "Mul"]
    assert multiply.outputs[0].name == "c"


@pytest.mark.parametrize("missing", ["Mul", "Div"])
def test_half_of_the_form_is_broken(missing: str) -> None:
    model = attention()
    divide_rows(model, *find_attention(model))
    (node,) = [node for node in model.graph if node.op_type == missing]
    source = node.inputs[0]
    assert source is not None
    node.outputs[0].replace_all_uses_with(source)
    (one,) = find_attention(model)
    assert rows_of(one) == "broken"
