"""Attention in 8 bits: its forms, what each leaves of the accuracy, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.paths import CALIBRATION, ROOT
from vitexport.files import StageResult
from vitexport.host.diagnose.cuts import find_cuts
from vitexport.host.export import export_onnx
from vitexport.host.graph.attention_rows import rows_of
from vitexport.host.graph.layers import find_attention, find_linears
from vitexport.host.lint import lint_model, parse_target
from vitexport.host.quantize import quantize_onnx
from vitexport.host.quantize.qdq.postconditions import violations
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources import load_model
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import ExportSettings, ModelSettings, QuantizeSettings, SimplifySettings

IMAGES = list_images(CALIBRATION, limit=64)


def quantized(model: Path, out: Path, **settings: str) -> StageResult:
    return quantize_onnx(model, IMAGES, QuantizeSettings.model_validate({"preset": "fast", **settings}), out)


@pytest.fixture(scope="module")
def rows(model: Path, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    folder = tmp_path_factory.mktemp("rows")
    return quantized(model, folder / "rows.onnx", target="tensorrt", attention="int8-rows")


@pytest.fixture(scope="module")
def fused(model: Path, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    return quantized(model, tmp_path_factory.mktemp("fused") / "fused.onnx", target="tensorrt", attention="int8")


def test_rows_leave_more_of_the_accuracy_than_the_fused_form(rows: StageResult, fused: StageResult) -> None:
    assert rows.details["quality"]["sqnr_db"] > fused.details["quality"]["sqnr_db"]


def test_each_form_says_how_its_target_executes_it(rows: StageResult, fused: StageResult) -> None:
    assert rows.details["attention_form"] == "int8-rows" and fused.details["attention_form"] == "int8"
    assert rows.details["attention_remark"] == "TensorRT runs this form as separate kernels"
    assert fused.details["attention_remark"].startswith("TensorRT fuses this form")
    for result, rules in ((rows, {"attention-rows": "info"}), (fused, {})):
        found = {finding.rule: finding.severity for finding in lint_model(result.path, parse_target("tensorrt"))}
        assert {rule: level for rule, level in found.items() if rule.startswith("attention")} == rules


def test_a_float16_body_divides_in_float16_between_127_steps(rows: StageResult) -> None:
    graph = ir.load(rows.path)
    for one in find_attention(graph):
        if one.name not in rows.details["attention"]:
            continue
        dequantize = one.context.inputs[0].producer()
        assert dequantize is not None and dequantize.op_type == "DequantizeLinear"
        scale = dequantize.inputs[1].const_value
        assert scale.dtype == ir.DataType.FLOAT16
        assert np.rint(1 / float(scale.numpy())) == 127
        quantize = dequantize.inputs[0].producer()
        assert quantize.inputs[0].producer().op_type == "Div"
        assert quantize.inputs[0].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize("opset", [17, 18])
def test_older_opsets_and_a_fixed_batch_are_quantized_too(opset: int, tmp_path: Path) -> None:
    loaded = load_model(ModelSettings(source=str(ROOT / "recipes" / "quickstart" / "model")))
    exported = export_onnx(loaded, ExportSettings(opset=opset, batch=2), tmp_path / "exported.onnx").path
    simplified = simplify_onnx(exported, SimplifySettings(), tmp_path / "simplified.onnx").path
    details = quantized(simplified, tmp_path / "q.onnx", target="ort-x86", attention="int8-rows").details
    assert details["attention_remark"] == "ONNX Runtime runs every form as separate kernels"
    assert details["quality"]["sqnr_db"] > 18
    assert ir.load(tmp_path / "q.onnx").opset_imports[""] == opset


def test_uint8_probabilities_have_255_steps_from_zero(model: Path, tmp_path: Path) -> None:
    result = quantized(model, tmp_path / "q.onnx", target="ort-x86", attention="int8-rows")
    graph = ir.load(result.path)
    one = next(one for one in find_attention(graph) if one.name in result.details["attention"])
    dequantize = one.context.inputs[0].producer()
    scale, zero = (value.const_value.numpy() for value in dequantize.inputs[1:3])
    assert zero.dtype == np.uint8 and int(zero) == 0
    np.testing.assert_allclose(float(scale), 1 / 255, rtol=1e-6)


def test_fp8_has_its_own_name(model: Path, tmp_path: Path) -> None:
    result = quantized(model, tmp_path / "q.onnx", target="tensorrt", precision="fp8", attention="fp8")
    assert result.details["attention"] and result.details["attention_form"] == "fp8"
    assert {rows_of(one) for one in find_attention(ir.load(result.path))} == {"plain"}


def test_postconditions_notice_a_form_that_is_broken_or_another(rows: StageResult) -> None:
    def breaches(graph: ir.Model, asked: dict[str, bool]) -> set[str]:
        layers = rows.details["quantized"]
        return {one.rule for one in violations(graph, layers=layers, symmetric=True, attention=asked)}

    names = rows.details["attention"]
    assert names
    graph = ir.load(rows.path)
    assert breaches(graph, dict.fromkeys(names, True)) == set()
    assert breaches(graph, dict.fromkeys(names, False)) == {"attention"}
    (multiply, *_) = [node for node in graph.graph if node.op_type == "Mul" and "attention" in str(node.name)]
    multiply.outputs[0].replace_all_uses_with(multiply.inputs[0])
    assert breaches(graph, dict.fromkeys(names, True)) == {"attention"}


def test_diagnosis_compares_the_output_after_the_multiplication(model: Path, rows: StageResult) -> None:
    def contexts(path: Path) -> dict[str, str]:
        return {cut.layer: cut.tensor for cut in find_cuts(ir.load(path)) if cut.role == "context"}

    assert contexts(rows.path) == contexts(model) != {}


def test_a_float_projection_after_a_quantized_attention_reads_the_values_it_expects(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value is quantized as the projection's plan transforms it, whether or not the projection stays float."""
    from vitexport.host.quantize import quantizer
    from vitexport.host.quantize.planning.islands import Islands

    kept = tuple(f"{block}.proj" for block in range(4))
    monkeypatch.setattr(quantizer, "find_islands", lambda *_args, **_options: Islands(kept))
    result = quantized(model, tmp_path / "q.onnx", target="tensorrt", attention="int8-rows")
    assert not [name for name in result.details["quantized"] if name.endswith("o_proj")]
    assert result.details["quality"]["sqnr_db"] > 18
    assert len([layer for layer in find_linears(ir.load(result.path)) if layer.role == "proj"]) == len(kept)


def test_rows_on_deit_tiny(shared: Path, tmp_path: Path) -> None:
    loaded = load_model(ModelSettings(source=str(shared / "models" / "deit-tiny-hf")))
    exported = export_onnx(loaded, ExportSettings(), tmp_path / "exported.onnx").path
    model = simplify_onnx(exported, SimplifySettings(), tmp_path / "model.onnx").path
    images = list_images(shared / "data" / "imagenet-1k-sample" / "calib", limit=64)
    settings = QuantizeSettings(target="tensorrt", attention="int8-rows", preset="fast")
    quality = quantize_onnx(model, images, settings, tmp_path / "q.onnx").details["quality"]
    assert quality["sqnr_db"] >= 18
