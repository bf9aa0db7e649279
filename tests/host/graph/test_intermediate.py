"""Inner tensors are put out or taken from outside, and the model that is looked into stays as it was."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.ir_graphs import graph, random, run
from vitexport.errors import RuntimeBackendError
from vitexport.host.graph.intermediate import exposed_file, open_exposed, take_as_inputs
from vitexport.host.graph.scopes import block_path


def _model() -> ir.Model:
    return graph(
        """g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) {
            a = MatMul(x, w)
            b = Relu(a)
            y = Add(a, b)
        }""",
        {"w": random(4, 4)},
    )


def test_inner_tensors_come_out_beside_the_outputs_and_the_model_stays_as_it_was() -> None:
    model = _model()
    model.graph.node(1).outputs[0].type = None
    before = ir.to_proto(model).SerializeToString()
    x = random(3, 4)
    with open_exposed(model, ["b", "a", "b", "y"]) as runtime:
        assert [spec.name for spec in runtime.outputs] == ["y", "b", "a"]
        outputs = runtime.run({"x": x})
    np.testing.assert_allclose(outputs["a"], x @ random(4, 4), rtol=1e-5)
    np.testing.assert_array_equal(outputs["b"], np.maximum(outputs["a"], 0))
    assert ir.to_proto(model).SerializeToString() == before


def test_the_file_goes_with_the_context_and_its_weights_are_beside_it() -> None:
    with exposed_file(_model(), ["a"]) as path:
        assert {one.name for one in path.parent.iterdir()} == {"exposed.onnx", "exposed.data"}
    assert not path.parent.exists()


def test_a_model_that_cannot_be_written_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("onnx_ir.save", full)
    model = _model()
    with pytest.raises(OSError, match="disk full"), exposed_file(model, ["a"]):
        pass
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_consumers_of_a_given_tensor_read_the_input_and_what_the_graph_computes_can_still_be_read() -> None:
    model = _model()
    assert take_as_inputs(model, ["a"], "::given") == {"a": ir.DataType.FLOAT}
    model.graph.outputs.append(model.graph.node(0).outputs[0])
    x, given = random(3, 4), random(3, 4, seed=1)
    outputs = run(model, {"x": x, "a::given": given})
    np.testing.assert_allclose(outputs["y"], given + np.maximum(given, 0), rtol=1e-6)
    np.testing.assert_allclose(outputs["a"], x @ random(4, 4), rtol=1e-5)


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("blocks.7.mlp.fc2", "blocks.7"),
        ("vit.encoder.layer.11.attention", "vit.encoder.layer.11"),
        ("layers.0.blocks.1.attn", "layers.0.blocks.1"),
        ("blocks.7", "blocks.7"),
        ("norm1", None),
        ("", None),
    ],
)
def test_a_block_ends_with_the_last_number_of_a_module(module: str, block: str | None) -> None:
    assert block_path(module) == block


def test_a_graph_that_does_not_open_says_why() -> None:
    model = _model()
    model.graph.node(1).op_type = "NoSuchOperator"
    with pytest.raises(RuntimeBackendError, match="NoSuchOperator"), open_exposed(model, []):
        pass
