"""Real engines, built by TensorRT-RTX without a GPU: every precision and target, twice the same; bad input refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.suites.model_rows import ROWS, Row, row_named
from tests.support.engine_models import PRECISIONS, Variants
from tests.support.onnx_graphs import FLOATS, Graph, attention, floating, linear, normal, operator, rotated, save
from vitexport.bundle.metadata import ModelMetadata
from vitexport.engine.build import build_engine
from vitexport.errors import EngineBuildError
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.runtimes.tensorrt.sidecar import read_sidecar, sidecar_path

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

Shallow = Callable[[Row], Variants]

# One row per way a graph can look; the others repeat one of these in another size, and their sweep is slow.
KINDS = (
    "google/vit-base-patch16-224",
    "vit-b16-timm",
    "deit-distilled-hf",
    "deit-distilled-timm",
    "beit-hf",
    "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "beitv2-hf",
    "dinov2-hf",
    "dinov2-registers-timm",
    "dinov3-hf",
    "dinov3-timm",
    "siglip-hf",
    "siglip2-timm",
    "clip-hf",
    "clip-timm",
    "eva02-timm",
    "swin-hf",
    "swin-timm",
)

# One target makes a build five times faster than the product's default of all.
ONE = ("8.9",)


def _build(model: Path, out: Path, **settings: Any) -> Path:
    return build_engine(model, EngineSettings.model_validate({"product": "tensorrt-rtx", **settings}), out).path


def _check(engine: Path, precision: str, *, shallow: bool = False) -> None:
    """The engine asks for what its ONNX file was made to ask for.

    In a shallow model patch embedding and head, which stay in float, outweigh the two blocks: there the first block is
    looked at.
    """
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    weighted = [gemm for gemm in sidecar.requested if gemm.kind == "weighted"]
    if shallow:
        weighted = [gemm for gemm in weighted if ".0." in gemm.name]
        assert len(weighted) >= 4
    else:
        assert sidecar.precision == PRECISIONS[precision]
    work = sum(gemm.flops for gemm in weighted)
    asked = sum(gemm.flops for gemm in weighted if gemm.precision == PRECISIONS[precision])
    assert asked >= 0.9 * work
    assert all(gemm.name and gemm.flops > 0 for gemm in sidecar.requested)
    ModelMetadata.from_metadata(sidecar.metadata, where=engine.name)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_deit_tiny_builds_in_every_precision(precision: str, deit: Variants, tmp_path: Path) -> None:
    _check(_build(deit[precision], tmp_path / "model.engine", batch="1,8", compute_capabilities=ONE), precision)


@pytest.mark.parametrize(
    "precision", ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in PRECISIONS if name != "int8")]
)
def test_two_builds_give_the_same_engine(precision: str, deit: Variants, tmp_path: Path) -> None:
    first, second = (
        _build(deit[precision], tmp_path / f"{name}.engine", batch="1,8", compute_capabilities=ONE)
        for name in ("first", "second")
    )
    assert first.read_bytes() == second.read_bytes()
    assert sidecar_path(first).read_bytes() == sidecar_path(second).read_bytes()


def test_another_process_builds_the_same_engine_for_all_default_targets(deit: Variants, tmp_path: Path) -> None:
    first = _build(deit["int8"], tmp_path / "first.engine")
    _check(first, "int8")
    words = ["build-engine", str(deit["int8"]), "-o", str(tmp_path / "second.engine"), "--product", "tensorrt-rtx"]
    command = [sys.executable, "-m", "vitexport.cli", *words, "--no-audit"]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert first.read_bytes() == (tmp_path / "second.engine").read_bytes()
    sidecar = read_sidecar(first)
    assert sidecar is not None
    assert sidecar.compute_capabilities == ()


def test_int8_engines_are_smaller(deit: Variants, tmp_path: Path) -> None:
    sizes = {
        precision: _build(deit[precision], tmp_path / f"{precision}.engine", compute_capabilities=("8.6",))
        .stat()
        .st_size
        for precision in ("fp32", "int8")
    }
    assert sizes["int8"] < 0.6 * sizes["fp32"]


def test_turing_takes_a_16_bit_body_and_refuses_float32(deit: Variants, tmp_path: Path) -> None:
    engine = _build(deit["fp16"], tmp_path / "model.engine", compute_capabilities=("7.5",))
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar.compute_capabilities == ("7.5",)
    with pytest.raises(EngineBuildError, match=r"Turing \(SM75\): FP32 GEMM is not supported"):
        _build(deit["fp32"], tmp_path / "float.engine", compute_capabilities=("7.5",))


@pytest.mark.parametrize("targets", [("8.6",), ("12.0",), ("8.6", "8.9", "12.0")])
def test_targets_can_be_chosen_without_having_them(targets: tuple[str, ...], deit: Variants, tmp_path: Path) -> None:
    engine = _build(deit["int8"], tmp_path / "model.engine", compute_capabilities=targets)
    sidecar = read_sidecar(engine)
    assert sidecar is not None
    assert sidecar.compute_capabilities == targets
    assert sidecar.gpu == ""


def test_a_device_profile_chooses_the_target(deit: Variants, tmp_path: Path) -> None:
    sidecar = read_sidecar(_build(deit["int8"], tmp_path / "model.engine", device="rtx-40"))
    assert sidecar is not None
    assert sidecar.compute_capabilities == ("8.9",)
    with pytest.raises(EngineBuildError, match="has no FP8"):
        _build(deit["fp8"], tmp_path / "fp8.engine", device="rtx-30")
    assert not (tmp_path / "fp8.engine").exists()


# Every kind is built in two precisions, and these in all: plain, windowed, with rotary positions, with other heads.
IN_ALL = ("vit-b16-timm", "swin-hf", "dinov3-timm", "siglip2-timm")


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=() if precision in ("fp16", "int8") or name in IN_ALL else pytest.mark.slow)
        for name in KINDS
        for precision in PRECISIONS
    ],
)
def test_every_kind_of_model_builds_in_every_precision(
    name: str, precision: str, shallow: Shallow, tmp_path: Path
) -> None:
    model = shallow(row_named(name))[precision]
    _check(_build(model, tmp_path / "model.engine", compute_capabilities=ONE), precision, shallow=True)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("row", [row for row in ROWS if row.name not in KINDS], ids=lambda row: row.name)
def test_every_row_builds_in_every_precision(row: Row, precision: str, shallow: Shallow, tmp_path: Path) -> None:
    model = shallow(row)[precision]
    _check(_build(model, tmp_path / "model.engine", compute_capabilities=ONE), precision, shallow=True)


@pytest.mark.parametrize("base", ["fp32", "fp16", "bf16"])
def test_float_types_are_read_from_the_network(base: str, tmp_path: Path) -> None:
    model = save(floating(base), tmp_path / "model.onnx")
    sidecar = read_sidecar(_build(model, tmp_path / "model.engine"))
    assert sidecar is not None
    assert [(gemm.name, gemm.precision, gemm.flops) for gemm in sidecar.requested] == [
        ("fc", PRECISIONS[base], 2 * 8 * 64 * 32)
    ]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantized_types_are_read_from_the_network(kind: str, tmp_path: Path) -> None:
    model = save(linear(activation=kind, kind=kind), tmp_path / "model.onnx")
    sidecar = read_sidecar(_build(model, tmp_path / "model.engine"))
    assert sidecar is not None
    assert [gemm.precision for gemm in sidecar.requested] == [kind]


def test_int8_with_16_bit_scales_builds_for_turing(tmp_path: Path) -> None:
    graph = Graph()
    weight = graph.quantized_weight(normal(64, 32), base="fp16")
    product = graph.node("MatMul", [graph.quantize("x", base="fp16"), weight], "fc")
    model = save(graph.model(product, dtype=FLOATS["fp16"]), tmp_path / "model.onnx")
    sidecar = read_sidecar(_build(model, tmp_path / "model.engine", compute_capabilities=("7.5",)))
    assert sidecar is not None
    assert sidecar.precision == "int8"


def test_half_quantized_and_cast_products_count_as_float(tmp_path: Path) -> None:
    for name, model, expected in (
        ("half", linear(quantize_weight=False), "float32"),
        ("cast", linear(cast=True), "float16"),
    ):
        sidecar = read_sidecar(_build(save(model, tmp_path / f"{name}.onnx"), tmp_path / f"{name}.engine"))
        assert sidecar is not None
        assert [gemm.precision for gemm in sidecar.requested] == [expected]


def test_attention_products_are_told_from_weighted_ones(tmp_path: Path) -> None:
    sidecar = read_sidecar(_build(save(attention(), tmp_path / "a.onnx"), tmp_path / "a.engine"))
    assert sidecar is not None
    assert [(gemm.name, gemm.kind) for gemm in sidecar.requested] == [("bmm1", "attention"), ("bmm2", "attention")]
    assert {gemm.flops for gemm in sidecar.requested} == {2 * 2 * 64 * 64 * 64}


@pytest.mark.parametrize("base", ["fp32", "fp16"])
def test_a_rotation_is_no_product_of_the_model(base: str, tmp_path: Path) -> None:
    sidecar = read_sidecar(_build(save(rotated(base), tmp_path / "r.onnx"), tmp_path / "r.engine"))
    assert sidecar is not None
    assert [(gemm.name, gemm.precision) for gemm in sidecar.requested] == [("fc", "int8")]


def test_an_attention_operator_in_float32_builds_because_it_may_be_split(tmp_path: Path) -> None:
    from tests.support.rtx import parses_and_builds

    graph = Graph()
    parts = [graph.node("MatMul", ["x", graph.weight(normal(32, 32), name)], f"{name}_proj") for name in "qkv"]
    model = graph.model(graph.node("Attention", parts, "mha"), shape=("batch", 2, 64, 32), opset=23)
    path = save(model, tmp_path / "model.onnx")
    accepted, _ = parses_and_builds(path)
    assert not accepted, "TensorRT-RTX now fuses attention in float32; the lint rule 'attention-float32' is out of date"
    sidecar = read_sidecar(_build(path, tmp_path / "model.engine"))
    assert sidecar is not None
    assert [gemm.flops for gemm in sidecar.requested if gemm.kind == "attention"] == [2 * 2 * 64 * 64 * 32] * 2


BAD: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, Any], str]] = {
    "bias DQ": (lambda: linear(quantized_bias=True), {}, r"node b_dq \(DequantizeLinear\).*input has type Int32"),
    "zero point": (lambda: linear(zero=3), {}, r"node x_q \(QuantizeLinear\).*Non-zero zero point"),
    "uint8": (lambda: linear(activation="uint8", zero=128), {}, r"Non-zero zero point"),
    "operator": (lambda: operator("Det"), {}, r"node det \(Det\).*UNSUPPORTED_NODE"),
    "dynamic tokens": (lambda: floating(shape=("batch", "tokens", 64)), {}, "dynamic axes tokens"),
    "fixed batch": (
        lambda: floating(shape=(4, 8, 64)),
        {"batch": "1,8"},
        "fixed batch of 4, and 1, 2, 8 was asked for",
    ),
    "range that falls": (
        floating,
        {"shapes": {"x": ((1, 8, 64), (8, 8, 64), (4, 8, 64))}},
        r"refuses the range.*MIN<=OPT<=MAX",
    ),
    "wrong fixed axis": (
        floating,
        {"shapes": {"x": ((1, 9, 64), (1, 9, 64), (1, 9, 64))}},
        "profile has min=9, opt=9, max=9 but tensor has 8",
    ),
    "target": (floating, {"compute_capabilities": ("9.0",)}, "cannot build for compute capability 9.0"),
    "stripped": (floating, {"strip_weights": True}, "only where there is a GPU"),
    "version compatible": (floating, {"version_compatible": True}, "do not move between releases"),
    "hardware compatible": (floating, {"hardware_compatibility": "ampere_plus"}, "no hardware compatibility"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_our_error_with_the_vendors_reason_and_no_file(case: str, tmp_path: Path) -> None:
    make, settings, message = BAD[case]
    model = save(make(), tmp_path / "model.onnx")
    with pytest.raises(EngineBuildError, match=message) as caught:
        _build(model, tmp_path / "model.engine", **settings)
    assert caught.value.hint
    assert "cudaError 35" not in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "Failed to parse the ONNX model"), (b"hello world, not onnx" * 10, "no inputs and outputs")],
)
def test_a_truncated_or_foreign_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    model = save(linear(), tmp_path / "model.onnx")
    model.write_bytes(model.read_bytes()[: model.stat().st_size * 2 // 3] if content is None else content)
    with pytest.raises(EngineBuildError, match=message):
        _build(model, tmp_path / "model.engine")


def test_external_weights_are_found_beside_the_model_and_missed_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(linear(), str(path), save_as_external_data=True, location="model.data", size_threshold=16)
    assert _build(path, tmp_path / "model.engine").is_file()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(path, moved / "model.onnx")
    with pytest.raises(EngineBuildError, match="Failed to import initializer"):
        _build(moved / "model.onnx", moved / "model.engine")


def test_the_plan_is_raw_and_the_sidecar_is_json(tmp_path: Path) -> None:
    engine = _build(save(linear(), tmp_path / "model.onnx"), tmp_path / "model.engine", batch="1,8")
    data = json.loads(sidecar_path(engine).read_text())
    assert data["schema"] == 2
    assert data["engine_bytes"] == engine.stat().st_size
    assert data["settings"]["batch"] == [[1, 1, 1], [2, 8, 8]]
    assert engine.read_bytes()[:4] != b"{\n  "


def test_progress_names_the_builders_phases(tmp_path: Path) -> None:
    seen: list[str] = []

    class Watch:
        def start(self, phase: str, parent: str | None, steps: int) -> None:
            seen.append(phase)

        def step(self, phase: str, step: int) -> bool:
            return True

        def finish(self, phase: str) -> None: ...

    settings = EngineSettings(product="tensorrt-rtx")
    build_engine(save(linear(), tmp_path / "model.onnx"), settings, tmp_path / "model.engine", progress=Watch())
    assert "Building engine" in seen
