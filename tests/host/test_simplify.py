"""Simplification keeps what must stay, and fails rather than write another model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.ir_graphs import graph, random
from vitexport.errors import SimplifyError
from vitexport.host import simplify
from vitexport.host.export import export_onnx
from vitexport.host.graph import onnxsim as structure
from vitexport.host.graph.file import read_onnx
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources import LoadedModel
from vitexport.recipe.settings import ExportSettings, SimplifySettings


@pytest.fixture(scope="module")
def exported(loaded_vit: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(loaded_vit, ExportSettings(), tmp_path_factory.mktemp("exported") / "m.onnx").path


@pytest.mark.parametrize("onnxsim", [True, False])
def test_simplifying_twice_changes_nothing_more(exported: Path, tmp_path: Path, onnxsim: bool) -> None:
    once = simplify_onnx(exported, SimplifySettings(onnxsim=onnxsim), tmp_path / "once.onnx")
    twice = simplify_onnx(once.path, SimplifySettings(onnxsim=onnxsim), tmp_path / "twice.onnx")
    assert once.details["nodes_before"] == 67 and once.details["nodes"] == 64
    assert twice.details["operators"] == once.details["operators"]
    assert 0 <= once.details["self_check"] <= 1e-5


def test_onnxsim_cleans_a_graph_of_another_tool_and_sees_no_weights(tmp_path: Path) -> None:
    model = graph(
        """g (float[2, 16, 8] x, float[8, 12] w, int64[3] back, int64 i) => (float[2, 16, 12] y) {
            shape = Shape(x)
            first = Gather <axis = 0> (shape, i)
            zero = Sub(first, first)
            same = Add(first, zero)
            m = MatMul(x, w)
            r = Reshape(m, back)
            d = Dropout(r)
            y = Relu(d)
        }""",
        {"w": random(8, 12), "back": np.array([2, 16, 12]), "i": np.array(0)},
    )
    ir.save(model, tmp_path / "other.onnx")
    result = simplify_onnx(tmp_path / "other.onnx", SimplifySettings(), tmp_path / "clean.onnx")
    assert result.details["operators"] == {"MatMul": 1, "Relu": 1}
    np.testing.assert_array_equal(
        next(iter(read_onnx(result.path).graph.initializers.values())).const_value.numpy(), random(8, 12)
    )


def test_a_failing_onnxsim_is_an_error(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxsim

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the simplifier crashed")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    with pytest.raises(SimplifyError, match=r"(?s)the simplifier crashed.*onnxsim: false"):
        simplify_onnx(exported, SimplifySettings(), tmp_path / "s.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_pass_that_changes_the_result_is_caught(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sabotage(model: ir.Model) -> tuple[str, ...]:
        bias = next(value for name, value in model.graph.initializers.items() if name.endswith("fc1.bias"))
        assert bias.const_value is not None
        bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(0.01), name=bias.name)
        return ("Sabotage",)

    monkeypatch.setattr(simplify, "canonicalize", sabotage)
    with pytest.raises(SimplifyError, match="differs from 'm.onnx' in 'logits'"):
        simplify_onnx(exported, SimplifySettings(), tmp_path / "s.onnx")
    assert list(tmp_path.iterdir()) == [], "a file that is not the same model must not be left"


def test_a_broken_postcondition_is_an_error(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: ir.Model) -> tuple[str, ...]:
        raise ir.passes.PostconditionError("left something behind")

    monkeypatch.setattr(simplify, "canonicalize", broken)
    with pytest.raises(SimplifyError, match="left something behind"):
        simplify_onnx(exported, SimplifySettings(), tmp_path / "s.onnx")


@pytest.mark.parametrize("content", [b"", b"not an onnx file", b"\x08\x0a" * 50])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(SimplifyError, match="Cannot read"):
        simplify_onnx(tmp_path / "m.onnx", SimplifySettings(), tmp_path / "s.onnx")


def test_the_input_is_never_overwritten(exported: Path) -> None:
    with pytest.raises(SimplifyError, match="another output file"):
        simplify_onnx(exported, SimplifySettings(), exported)


def test_an_interface_that_onnxsim_changes_is_an_error(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxsim

    original = onnxsim.simplify

    def rename(model: object, **kwargs: object) -> object:
        result, ok = original(model, **kwargs)
        result.graph.output[0].name = result.graph.node[-1].output[0] = "other"
        return result, ok

    monkeypatch.setattr(onnxsim, "simplify", rename)
    with pytest.raises(SimplifyError, match="changed the model's interface"):
        structure.simplify_structure(read_onnx(exported))
