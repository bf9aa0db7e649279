"""What TensorRT-RTX's parser and compiler say to the models of the rules: which they enforce and which only we have."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import defs

from tests.support.lint_cases import CASES, Make
from tests.support.onnx_graphs import floating, linear, save
from vitexport.device.profiles import device_profile
from vitexport.host.lint import lint_model, parse_target
from vitexport.host.lint.operators import NEWER_THAN_10_3, UNSUPPORTED


@pytest.mark.parametrize("case", [name for name, spec in CASES.items() if spec[4]])
def test_the_rtx_parser_refuses_the_broken_model_and_builds_the_right_one(case: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from tests.support.rtx import parses_and_builds

    _, _, broken, right, _ = CASES[case]
    accepted, reason = parses_and_builds(save(broken(), tmp_path / "broken.onnx"))
    assert not accepted
    assert reason
    accepted, reason = parses_and_builds(save(right(), tmp_path / "right.onnx"))
    assert accepted, reason


@pytest.mark.parametrize("case", [name for name, spec in CASES.items() if not spec[4]])
def test_the_rtx_parser_takes_what_only_the_linter_minds(case: str, tmp_path: Path) -> None:
    """These build and then run slowly, or not as meant: nobody but the linter says so."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from tests.support.rtx import parses_and_builds

    accepted, reason = parses_and_builds(save(CASES[case][2](), tmp_path / "model.onnx"))
    assert accepted, f"TensorRT-RTX refuses it now: {reason}"


def test_the_rtx_parser_reads_uint8_as_int8(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from tests.support.rtx import parses_and_builds

    _, said = parses_and_builds(save(linear(activation="uint8"), tmp_path / "model.onnx"))
    assert "Defaulting to INT8" in said


@pytest.mark.parametrize(
    ("make", "device", "rule"),
    [
        (lambda: linear(activation="fp8", kind="fp8"), "rtx-30", "device-precision"),
        (lambda: floating("bf16"), "rtx-20", "device-precision"),
        (floating, "rtx-20", "turing-float32"),
        (linear, "rtx-20", "turing-float32"),
        (lambda: linear(activation="fp8", kind="fp8"), "rtx-40", None),
        (lambda: floating("fp16"), "rtx-20", None),
        (floating, "rtx-30", None),
    ],
)
def test_the_rtx_compiler_agrees_about_devices(make: Make, device: str, rule: str | None, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from tests.support.rtx import parses_and_builds

    path = save(make(), tmp_path / "model.onnx")
    profile = device_profile(device)
    findings = lint_model(path, parse_target("tensorrt:rtx", device=profile))
    assert {finding.rule for finding in findings} == ({rule} if rule else set())
    assert parses_and_builds(path, profile.compute_capability)[0] is (rule is None)


def test_unsupported_operators_are_those_the_installed_parser_lacks() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from vitexport.runtimes.tensorrt.api import load_api

    api = load_api("tensorrt-rtx")
    builder = trt.Builder(api.logger)
    network = builder.create_network(api.network_flags)
    parser = trt.OnnxParser(network, api.logger)
    names = {schema.name for schema in defs.get_all_schemas() if schema.domain == ""}
    lacking = {name for name in names if not parser.supports_operator(name)}
    assert lacking == UNSUPPORTED & names
    assert all(name in names and name not in UNSUPPORTED for name in NEWER_THAN_10_3)
