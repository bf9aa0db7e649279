"""The audit reads both inspector forms and finds what fell back, came apart or cannot be accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.audits import FIXTURES, engine_information, fixture_audit, fixture_gemms
from tests.support.fake_gpu import Pretend
from tests.support.onnx_graphs import floating, save
from vitexport.engine.build import build_engine
from vitexport.errors import RuntimeBackendError
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.report.engine_audit import render_html
from vitexport.runtimes.tensorrt.audit import audit_engine, audit_layers, engine_facts
from vitexport.runtimes.tensorrt.inspector import EngineLayer, parse_layers
from vitexport.runtimes.tensorrt.sidecar import sidecar_path


@pytest.mark.parametrize("name", ["tensorrt10-int8", "tensorrt11-int8"])
def test_an_engine_that_did_what_was_asked_passes_in_both_forms(name: str) -> None:
    report = fixture_audit(name)
    assert report.passed
    assert report.kept_fraction == pytest.approx(1.0)
    assert report.fell_back == ()
    assert report.unknown == ()
    assert (report.fused_attention, report.attention_blocks) == (2, 2)
    assert (report.reformats, report.copies) == (1, 0)
    assert report.executed_fraction["int8"] == pytest.approx(report.requested_fraction["int8"])


def test_both_forms_give_the_same_layers() -> None:
    ten, eleven = (
        parse_layers((FIXTURES / f"{name}.json").read_text()) for name in ("tensorrt10-int8", "tensorrt11-int8")
    )
    assert ten == eleven


def test_fp8_is_recognised() -> None:
    report = fixture_audit("tensorrt11-fp8", "fp8")
    assert report.passed
    assert report.executed_fraction["fp8"] == pytest.approx(report.requested_fraction["fp8"])


def test_an_fp8_engine_does_not_pass_for_int8() -> None:
    report = fixture_audit("tensorrt11-fp8", "int8")
    assert not report.passed
    assert {gemm.executed for gemm in report.fell_back} == {"fp8"}


def test_fallback_missing_and_broken_attention_are_found() -> None:
    report = fixture_audit("tensorrt10-fallback")
    assert not report.passed
    assert [(gemm.name, gemm.requested, gemm.executed) for gemm in report.fell_back] == [
        ("blocks.1.mlp.fc1/MatMul", "int8", "float16")
    ]
    assert [gemm.name for gemm in report.unknown] == ["blocks.1.mlp.fc2/MatMul"]
    assert (report.fused_attention, report.attention_blocks) == (1, 2)
    assert report.copies == 1
    lost = 2 * 58_097_664 / sum(gemm.flops for gemm in fixture_gemms("int8"))
    assert report.kept_fraction == pytest.approx(1 - lost)


def test_shares_add_up_to_one() -> None:
    report = fixture_audit("tensorrt10-fallback")
    assert sum(report.requested_fraction.values()) == pytest.approx(1)
    assert sum(report.executed_fraction.values()) == pytest.approx(1)


def test_no_matrix_products_is_a_failure() -> None:
    assert not audit_layers((), ()).passed


def _layer(**values: Any) -> EngineLayer:
    base: dict[str, Any] = {
        "name": "l",
        "kind": "gemm",
        "tactic": "",
        "onnx": (),
        "inputs": (),
        "outputs": (),
        "weights": None,
    }
    return EngineLayer(**{**base, **values})


@pytest.mark.parametrize(
    ("tactic", "inputs", "weights", "expected"),
    [
        ("sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize256x128x64", (), None, "int8"),
        ("sm80_xmma_gemm_i8f32_i8i32_f32_tn_n", ("float16",), None, "int8"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_nt_n", ("int8",), None, "float16"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn", (), None, "bfloat16"),
        ("sm80_xmma_gemm_tf32tf32_tf32f32_f32_nt_n", ("float32",), None, "float32"),
        ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n", (), None, "fp8"),
        ("ampere_h16816gemm_128x128_ldg8_stages_32x5_tn", (), None, "float16"),
        ("turing_fp16_s1688gemm_fp16_128x128", (), None, "float16"),
        ("sm90_xmma_gemm_i8i32_i8i32_i32_tn_n_tilesize256x128x128_warpgroupsize2x1x1", (), None, "int8"),
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x32", (), None, "float32"),
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs", (), None, "int8"),
        ("sm89_xmma_gemm_f16e4m3_f16f32_f32_tn_n", (), None, "float16"),
        ("cutlass3x_sm100_tensorop_s128x128x32gemm_f8_f8_f32_f16_f16_128x128x128", (), None, "fp8"),
        ("cutlass3x_sm90_tensorop_s64x128x32gemm_e4m3_e4m3_f32_bf16_bf16", (), None, "fp8"),
        ("cutlass3x_sm100_tensorop_i128x256x32gemm_s8_s8_s32_f16_f16", (), None, "int8"),
        ("cutlass3x_sm100_tensorop_s64x128x16gemm_f16_f16_f32_f16_f16_64x128x64", ("int8",), None, "float16"),
        ("cutlass3x_sm100_tensorop_s128x128x16gemm_bf16_bf16_f32_void_bf16", (), None, "bfloat16"),
        ("cutlass3x_sm100_tensorop_s128x128x8tf32gemm_f32_f32_f32_f32_f32", (), None, "float32"),
        ("sm50_xmma_cublas_gemvx_f16f16_f32", (), None, "float16"),
        ("__myl_FcAdd_0x3f16f16aa0fp8bf16imma", ("float32",), None, "float32"),
        ("", ("int8", "int8"), None, "int8"),
        ("", ("int8", "float16"), None, "int8"),
        ("", ("float16", "int8"), None, "float16"),
        ("", ("float16", "int8", "int8"), None, "int8"),
        ("", ("float16", "float32"), None, "float16"),
        ("", ("float32",), "int8", "float32"),
        ("", ("int8",), "int8", "int8"),
        ("", ("int8",), "float16", "float16"),
        ("", (), "int8", "int8"),
        ("", (), None, "other"),
    ],
)
def test_the_kernel_tells_the_precision(tactic: str, inputs: Any, weights: Any, expected: str) -> None:
    assert _layer(tactic=tactic, inputs=inputs, weights=weights).compute_precision == expected


@pytest.mark.parametrize(
    ("name", "kind", "tactic", "expected"),
    [
        ("fc1/MatMul_myl0_7", "gemm", "", True),
        ("fc1", "CaskGemmMatrixMultiply", "", True),
        ("patch", "CaskConvolution", "", True),
        ("__myl_Fc_myl1_2", "fusion", "", True),
        ("__myl_FcAddCastMeanSub_myl5_249", "kgen", "", True),
        ("l", "kgen", "__myl_MulFcAdd_0x12", True),
        ("l", "gemm", "sm50_xmma_cublas_gemvx_f16f16_f32", True),
        ("_gemm_mha_v2_myl3_6", "kgen", "_gemm_mha_v2_0xabfc", True),
        ("__myl_AddCast_myl0_5", "kgen", "__myl_AddCast_0x03fc1d6cfc", False),
        ("__myl_ConvertMul_myl0_5", "kgen", "__myl_ConvertMul_0x1", False),
        ("__myl_CasMeaSub_myl0_1", "kgen", "", False),
        ("Reformatting CopyNode for Input Tensor 0 to fc1/MatMul", "Reformat", "", False),
    ],
)
def test_matrix_products_are_told_from_what_only_sounds_like_them(
    name: str, kind: str, tactic: str, expected: bool
) -> None:
    assert _layer(name=name, kind=kind, tactic=tactic).is_matrix_product is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major linear FP16 format", "float16"),
        ("Row major linear BFloat16 format", "bfloat16"),
        ("Row major linear FP32", "float32"),
        ("FP8", "fp8"),
    ],
)
def test_formats_of_tensorrt_10_are_read(text: str, expected: str) -> None:
    tensor = {"Name": "x", "Dimensions": [1], "Format/Datatype": text}
    (layer,) = parse_layers(json.dumps({"Layers": [{"Name": "l", "LayerType": "gemm", "Inputs": [tensor]}]}))
    assert layer.inputs == (expected,)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Layers": ["only", "names"]}'])
def test_what_is_no_detailed_inspection_is_refused(text: str) -> None:
    with pytest.raises(RuntimeBackendError, match=r"cannot be read|only the names"):
        parse_layers(text)


def _engine(pretend: Pretend, tmp_path: Path, **script: Any) -> Path:
    pretend(**script)
    settings = EngineSettings.model_validate({"timing_cache": tmp_path / "t"})
    build_engine(save(floating(), tmp_path / "m.onnx"), settings, tmp_path / "m.engine")
    return tmp_path / "m.engine"


@pytest.mark.parametrize(("tactic", "passed"), [("xmma_gemm_f32f32_", True), ("xmma_gemm_f16f16_", False)])
def test_an_engine_is_audited_on_its_gpu(tactic: str, passed: bool, pretend: Pretend, tmp_path: Path) -> None:
    engine = _engine(pretend, tmp_path, inspector=engine_information(tactic))
    assert audit_engine(engine).passed is passed


def test_the_inspector_goes_before_its_engine(pretend: Pretend, tmp_path: Path) -> None:
    engine = _engine(pretend, tmp_path)
    machine = pretend()
    audit_engine(engine)
    steps = machine.order("create engine", "create inspector", "delete inspector", "delete engine")
    assert steps == sorted(steps)


def test_without_a_sidecar_there_is_nothing_to_compare_with(pretend: Pretend, tmp_path: Path) -> None:
    engine = _engine(pretend, tmp_path)
    sidecar_path(engine).unlink()
    with pytest.raises(RuntimeBackendError, match="no sidecar"):
        audit_engine(engine)


def test_facts_without_a_gpu_are_the_sidecars(pretend: Pretend, tmp_path: Path) -> None:
    engine = _engine(pretend, tmp_path)
    pretend(gpu=None)
    facts = engine_facts(engine)
    assert facts.audit is None
    assert "needs an NVIDIA GPU" in facts.why_no_audit
    assert facts.summary["precision"] == "float32"
    page = render_html(facts)
    assert "Not run on this machine" in page
    assert "float32 100.0%" in page


def test_the_page_shows_what_fell_back_and_escapes_names(pretend: Pretend, tmp_path: Path) -> None:
    engine = _engine(pretend, tmp_path, inspector=engine_information("xmma_gemm_f16f16_<script>"))
    page = render_html(engine_facts(engine))
    assert '<span class="failed">failed</span>' in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<tr class=bad><td><code>fc</code></td>" in page
    assert "http" not in page
