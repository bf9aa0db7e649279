"""Every rule has a model that breaks it and one that keeps it; what the RTX parser enforces too is shown with it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.lint_cases import CASES
from tests.support.onnx_graphs import FLOATS, Graph, floating, linear, operator, rotated, save
from vitexport.device.profiles import device_profile
from vitexport.errors import BundleError, RecipeError
from vitexport.host.lint import RULES, Finding, lint_model, parse_target


def _lint(model: onnx.ModelProto, folder: Path, target: str, device: str | None = None) -> tuple[Finding, ...]:
    profile = None if device is None else device_profile(device)
    return lint_model(save(model, folder / "model.onnx"), parse_target(target, device=profile))


@pytest.mark.parametrize("case", CASES)
def test_rule_finds_the_broken_model_and_passes_the_right_one(case: str, tmp_path: Path) -> None:
    rule, target, broken, right, _ = CASES[case]
    found = [finding for finding in _lint(broken(), tmp_path, target) if finding.rule == rule]
    assert found
    assert all(finding.why and finding.fix for finding in found)
    assert rule not in {finding.rule for finding in _lint(right(), tmp_path, target)}


@pytest.mark.parametrize("target", ["tensorrt:10.3", "tensorrt:11", "tensorrt:rtx", "onnxruntime"])
@pytest.mark.parametrize("base", FLOATS)
def test_a_rotation_before_a_quantized_layer_is_no_finding(base: str, target: str, tmp_path: Path) -> None:
    assert _lint(rotated(base), tmp_path, target) == ()


def test_every_rule_has_a_case() -> None:
    with_own_test = {"external_weights", "weights_size", "device_precision", "turing_float32"}
    names = {rule.__name__ for rule in RULES} - with_own_test
    by_function = {
        "operators": "operator",
        "opset": "opset",
        "dynamic_axes": "dynamic-axes",
        "float64": "float64",
        "int32_bias": "int32-bias",
        "zero_points": "zero-point",
        "scales": "scale",
        "uint8": "uint8",
        "weight_axis": "weight-axis",
        "cast_after_dequantize": "cast-after-dq",
        "orphans": "orphan-qdq",
        "attention_guards": "attention-guards",
        "attention_size": "attention-size",
        "attention_quantization": "attention-quantization",
        "attention_rows": "attention-rows",
        "attention_operator": "attention-float32",
    }
    assert names == set(by_function)
    assert set(by_function.values()) <= {spec[0] for spec in CASES.values()}


@pytest.mark.parametrize(
    ("device", "kind", "broken"),
    [("orin-nano", "fp8", True), ("rtx-40", "fp8", False), ("orin-nano", "int8", False), ("t4", "int8", False)],
)
def test_precision_the_device_lacks_is_an_error(device: str, kind: str, broken: bool, tmp_path: Path) -> None:
    findings = _lint(linear(activation=kind, kind=kind), tmp_path, "tensorrt", device)
    assert [finding.rule for finding in findings] == (["device-precision"] if broken else [])


def test_bfloat16_on_turing_is_an_error(tmp_path: Path) -> None:
    assert [finding.rule for finding in _lint(floating("bf16"), tmp_path, "tensorrt", "t4")] == ["device-precision"]
    assert _lint(floating("bf16"), tmp_path, "tensorrt", "orin-nano") == ()


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_missing_or_short_external_weights_are_an_error_and_the_parser_agrees(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(linear(), str(path), save_as_external_data=True, location="model.data", size_threshold=16)
    assert lint_model(path, parse_target("tensorrt")) == ()
    data = tmp_path / "model.data"
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:-10])
    (finding,) = lint_model(path, parse_target("tensorrt"))
    assert finding.rule == "external-weights"
    assert "model.data" in finding.why
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from tests.support.rtx import parses_and_builds

    assert not parses_and_builds(path)[0]


def test_weights_beyond_two_gib_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(linear(), tmp_path / "model.onnx")
    assert lint_model(path, parse_target("tensorrt")) == ()
    monkeypatch.setattr("vitexport.host.lint.rules_model.TWO_GIB", path.stat().st_size - 1)
    (finding,) = lint_model(path, parse_target("tensorrt"))
    assert finding.rule == "weights-size"


@pytest.mark.parametrize("content", [b"", b"not an ONNX file at all", None])
def test_what_is_no_onnx_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = save(linear(), tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3] if content is None else content)
    with pytest.raises(BundleError, match=r"Expected an ONNX model at '.*model\.onnx'"):
        lint_model(path, parse_target("tensorrt"))


def test_a_finding_names_the_pytorch_module(tmp_path: Path) -> None:
    model = linear(cast=True)
    node = next(node for node in model.graph.node if node.name == "cast_w")
    node.metadata_props.append(onnx.StringStringEntryProto(key="vitexport.module", value="blocks.3.mlp.fc1"))
    findings = _lint(model, tmp_path, "tensorrt")
    assert "blocks.3.mlp.fc1" in {finding.module for finding in findings}


def test_the_exporters_own_scopes_name_the_module_too(tmp_path: Path) -> None:
    model = linear(cast=True)
    node = next(node for node in model.graph.node if node.name == "cast_w")
    scopes = "['', 'blocks.3', 'blocks.3.attn', 'blocks.3.attn.qkv', 'linear']"
    node.metadata_props.append(onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=scopes))
    assert "blocks.3.attn.qkv" in {finding.module for finding in _lint(model, tmp_path, "tensorrt")}


def test_a_dynamic_axis_with_a_range_is_fine(tmp_path: Path) -> None:
    path = save(floating(shape=("batch", "tokens", 64)), tmp_path / "model.onnx")
    assert lint_model(path, parse_target("tensorrt", shapes_given=("x",))) == ()


def test_custom_operators_are_named_with_their_domain(tmp_path: Path) -> None:
    graph = Graph()
    graph.nodes.append(helper.make_node("FancyAttention", ["x"], ["f"], name="fancy", domain="com.example"))
    graph.nodes.append(helper.make_node("Identity", ["f"], ["y"]))
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        graph.nodes, "g", [value("x", TensorProto.FLOAT, ["batch", 4])], [value("y", TensorProto.FLOAT, None)]
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    (finding,) = _lint(helper.make_model(body, opset_imports=opsets, ir_version=10), tmp_path, "tensorrt:11")
    assert "FancyAttention (domain com.example)" in finding.why


def test_onnx_runtime_is_not_held_to_tensorrts_rules(tmp_path: Path) -> None:
    for model in (linear(quantized_bias=True), linear(activation="uint8", zero=3), operator("Det")):
        assert _lint(model, tmp_path, "onnxruntime") == ()
    assert {finding.rule for finding in _lint(linear(axis=0), tmp_path, "onnxruntime")} == {"weight-axis"}


def test_errors_come_first(tmp_path: Path) -> None:
    findings = _lint(linear(quantized_bias=True), tmp_path, "tensorrt")
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities)


@pytest.mark.parametrize("text", ["tensorflow", "tensorrt:9", "tensorrt:", "onnxruntime:1"])
def test_unknown_targets_are_refused(text: str) -> None:
    if text == "tensorrt:":
        assert parse_target(text) == parse_target("tensorrt")
        return
    with pytest.raises(RecipeError, match="Expected a lint target"):
        parse_target(text)


def test_targets_stand_for_their_release_line() -> None:
    assert parse_target("tensorrt").release == "10.3"
    assert parse_target("tensorrt:10.16.2").release == "10.3"
    assert parse_target("tensorrt:11.4").release == "11"
    assert parse_target("tensorrt-rtx") == parse_target("tensorrt:rtx")
