"""``lint``, ``build-engine`` and ``trtexec`` as people call them: output, exit codes, nothing written on failure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from tests.support.audits import engine_information
from tests.support.fake_gpu import Pretend
from tests.support.onnx_graphs import floating, linear, save
from vitexport.cli import main
from vitexport.runtimes.tensorrt.api import load_api


def _call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_lint_exits_3_and_explains(tmp_path: Path) -> None:
    model = save(linear(quantized_bias=True), tmp_path / "model.onnx")
    result = _call("lint", model, "--for", "tensorrt:11")
    assert result.exit_code == 3
    assert "int32-bias" in result.stdout
    assert "TensorRT 11" in result.stdout


def test_lint_passes_and_says_so(tmp_path: Path) -> None:
    result = _call("lint", save(linear(), tmp_path / "model.onnx"), "--device", "orin-nano")
    assert result.exit_code == 0
    assert "nothing found for TensorRT 10.3" in result.stdout


def test_lint_json_is_one_document(tmp_path: Path) -> None:
    result = _call("lint", save(linear(axis=0), tmp_path / "model.onnx"), "--json")
    assert result.exit_code == 3
    data = json.loads(result.stdout)
    assert data["passed"] is False
    assert data["findings"][0]["rule"] == "weight-axis"


def test_warnings_alone_exit_0(tmp_path: Path) -> None:
    from tests.support.onnx_graphs import operator

    result = _call("lint", save(operator("Relu", opset=22), tmp_path / "model.onnx"))
    assert result.exit_code == 0
    assert "opset" in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--for", "tensorflow"), 2, "Expected a lint target"),
        (("--device", "orin-nanoo"), 2, "did you mean 'orin-nano'"),
    ],
)
def test_lint_refuses_wrong_options(words: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    result = _call("lint", save(linear(), tmp_path / "model.onnx"), *words)
    assert result.exit_code == code
    assert message in result.stderr


@pytest.mark.parametrize("content", [None, b"", b'{"schema": 1}', b"<html>"])
@pytest.mark.parametrize("name", ["model.onnx", "bundle.json", "model.textproto"])
def test_lint_of_what_is_no_model_is_an_error(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = _call("lint", tmp_path / name)
    assert result.exit_code == 1
    assert "Error: Expected an ONNX " in result.stderr


def test_lint_takes_a_whole_range_only(tmp_path: Path) -> None:
    model = save(floating(shape=("batch", "tokens", 64)), tmp_path / "model.onnx")
    assert _call("lint", model).exit_code == 3
    assert _call("lint", model, "--shape", "x=1x4x64:1x4x64:8x8x64").exit_code == 0
    wrong = _call("lint", model, "--shape", "x")
    assert wrong.exit_code == 2
    assert "NAME=MIN:OPT:MAX" in wrong.stderr


def test_inspect_makes_a_page_of_engines_only(tmp_path: Path) -> None:
    result = _call("inspect", save(linear(), tmp_path / "model.onnx"), "--html", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "Expected an engine to audit" in result.stderr
    assert not (tmp_path / "page.html").exists()


def test_build_engine_with_rtx_says_what_it_built_and_why_there_is_no_audit(pretend: Pretend, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    pretend(gpu=None)
    engine = tmp_path / "model.engine"
    model = save(linear(), tmp_path / "model.onnx")
    result = _call("build-engine", model, "-o", engine, "--product", "tensorrt-rtx", "--batch", "1,8")
    assert result.exit_code == 0, result.output
    assert engine.is_file()
    assert "requested: int8 100.0%" in result.stdout
    assert "audit: not run" in result.stdout


def test_build_engine_lints_first_and_exits_3(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    model = save(linear(zero=3), tmp_path / "model.onnx")
    result = _call("build-engine", model, "-o", engine, "--product", "tensorrt-rtx")
    assert result.exit_code == 3
    assert "zero-point" in result.stderr
    assert not engine.exists()


@pytest.mark.parametrize(("tactic", "code"), [("xmma_gemm_f32f32_", 0), ("xmma_gemm_f16f16_", 3)])
def test_build_engine_exits_3_if_the_audit_fails(tactic: str, code: int, pretend: Pretend, tmp_path: Path) -> None:
    machine = pretend(inspector=engine_information(tactic))
    machine.tensorrt.__version__ = "10.3.0"
    model = save(floating(), tmp_path / "model.onnx")
    words = ("build-engine", model, "-o", tmp_path / "m.engine", "--timing-cache", tmp_path / "t", "--json")
    result = _call(*words)
    assert result.exit_code == code, result.output
    audit = json.loads(result.stdout)["audit"]
    assert audit["passed"] is (code == 0)
    assert audit["gemms"][0]["executed"] == ("float32" if code == 0 else "float16")


def test_without_onnx_the_parser_is_the_check(
    pretend: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(inspector=engine_information("xmma_gemm_f32f32_"))
    model = save(linear(zero=3), tmp_path / "model.onnx")
    monkeypatch.setattr("vitexport.api.engine.importlib.util.find_spec", lambda name: None)
    result = _call("build-engine", model, "-o", tmp_path / "m.engine", "--timing-cache", tmp_path / "t")
    assert "lint: not run" in result.stderr
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--batch", "8,1"), 2, "ascending order"),
        (("--batch", "many"), 2, "whole number"),
        (("--shape", "x=1x2"), 2, "NAME=MIN:OPT:MAX"),
        (("--compute-capability", "sm86"), 2, "looks like '8.6'"),
        (("--device", "orin-nano"), 1, "TensorRT-RTX is for x86-64 machines"),
        (("--compute-capability", "9.0"), 1, "cannot build for compute capability 9.0"),
    ],
)
def test_build_engine_refuses_wrong_options(words: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    model = save(linear(), tmp_path / "model.onnx")
    result = _call("build-engine", model, "-o", tmp_path / "m.engine", "--product", "tensorrt-rtx", *words)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert not (tmp_path / "m.engine").exists()


def test_refit_completes_a_stripped_engine_and_refuses_a_plain_one(pretend: Pretend, tmp_path: Path) -> None:
    pretend()
    model = save(floating(), tmp_path / "model.onnx")
    words = ("build-engine", model, "-o", tmp_path / "m.engine", "--timing-cache", tmp_path / "t")
    built = _call(*words, "--strip-weights")
    assert built.exit_code == 0, built.output
    assert "`vitexport refit` puts them in" in built.stdout
    completed = _call("refit", tmp_path / "m.engine", model, "-o", tmp_path / "full.engine")
    assert completed.exit_code == 0, completed.output
    assert (tmp_path / "full.engine").read_bytes() == b"complete plan"
    absent = _call("refit", tmp_path / "m.engine", tmp_path / "absent.onnx", "-o", tmp_path / "no.engine")
    assert absent.exit_code == 1
    assert "Expected an ONNX file at" in absent.stderr
    assert _call(*words, "--no-audit").exit_code == 0
    plain = _call("refit", tmp_path / "m.engine", model, "-o", tmp_path / "no.engine")
    assert plain.exit_code == 1
    assert "was not built to take weights" in plain.stderr
    assert not (tmp_path / "no.engine").exists()


def test_inspect_shows_an_engines_facts_where_its_product_is_missing(
    pretend: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend()
    model = save(floating(), tmp_path / "model.onnx")
    words = ("build-engine", model, "-o", tmp_path / "m.engine", "--timing-cache", tmp_path / "t", "--no-audit")
    assert _call(*words).exit_code == 0
    load_api.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    shown = _call("inspect", tmp_path / "m.engine", "--html", tmp_path / "m.html")
    assert shown.exit_code == 0, shown.output
    assert "precision: float32" in shown.stdout
    assert "not made: " in shown.stdout
    assert "Not run on this machine" in (tmp_path / "m.html").read_text()


def test_trtexec_prints_one_line(tmp_path: Path) -> None:
    path = save(_carded(), tmp_path / "model.onnx")
    result = _call("trtexec", path, "--batch", "1,8", "--device", "orin-nano")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    assert result.stdout.startswith("trtexec --onnx=")
    assert "--maxShapes=x:8x8x64" in result.stdout
    assert "--memPoolSize=workspace:2048M" in result.stdout


def test_trtexec_without_a_card_says_what_is_missing(tmp_path: Path) -> None:
    result = _call("trtexec", save(linear(), tmp_path / "model.onnx"))
    assert result.exit_code == 1
    assert "vitexport export" in result.stderr


def _carded() -> onnx.ModelProto:
    from vitexport.bundle.metadata import ModelMetadata, ModelSpec
    from vitexport.inputs.preprocess import PreprocessSpec
    from vitexport.tensors import TensorSpec

    model = linear()
    spec = ModelSpec("timm", "tiny", "sha256:0", "vit", "classify", (TensorSpec("x", ("batch", 8, 64), "float32"),), ())
    preprocess = PreprocessSpec(image_size=(8, 8), resize=None, crop=True, mean=(0.5,) * 3, std=(0.5,) * 3)
    for key, value in ModelMetadata(spec, preprocess).to_metadata().items():
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))
    return model
