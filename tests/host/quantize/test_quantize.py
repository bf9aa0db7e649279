"""The quantizer on the quickstart's trained model: exactness, determinism, placement, and what bad input gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.paths import ROOT
from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import CalibrationError, ImageError, QuantizeError
from vitexport.files import StageResult
from vitexport.host.graph.hadamard import is_rotation
from vitexport.host.graph.layers import find_linears
from vitexport.host.lint import lint_model, parse_target
from vitexport.host.quantize import quantize_onnx
from vitexport.host.quantize.calibration.checks import CalibrationWarning
from vitexport.host.quantize.qdq.postconditions import violations
from vitexport.inputs.images import batches, list_images
from vitexport.recipe.settings import QuantizeSettings, Target
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.scoring import Head
from vitexport.tensors import Array
from vitexport.verification.parity import measure

IMAGES = list_images(ROOT / "calib" / "calibration")
HELD_OUT = list_images(ROOT / "calib" / "holdout", limit=120)
BODY = ("qkv", "proj", "fc1", "fc2")


@pytest.fixture(scope="module")
def quantized(model: Path, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    settings = QuantizeSettings(target="tensorrt", preset="fast", rotate="16")
    return quantize_onnx(model, IMAGES, settings, tmp_path_factory.mktemp("int8") / "int8.onnx")


@pytest.fixture(scope="module")
def int8(quantized: StageResult) -> Path:
    return quantized.path


def logits(path: Path, *, optimize: bool = True) -> Array:
    with open_runtime(path, options=RuntimeOptions(optimize=optimize)) as runtime:
        spec = ModelMetadata.from_metadata(runtime.metadata, where=str(path)).preprocess
        tensor = runtime.inputs[0]
        rows = [runtime.run({tensor.name: feed})["logits"] for feed in batches(HELD_OUT, spec, tensor, 40)]
    return np.concatenate(rows).astype(np.float32)


@pytest.mark.parametrize(
    ("settings", "sqnr_db"),
    [
        ({"target": "tensorrt"}, 24),
        ({"target": "portable"}, 24),
        ({"target": "ort-x86"}, 24),
        ({"target": "ort-arm64", "preset": "fast"}, 20),
        ({"target": "tensorrt", "preset": "fast", "attention": "int8"}, 15),
        ({"target": "tensorrt", "preset": "fast", "precision": "fp8"}, 15),
        ({"target": "tensorrt", "precision": "fp16"}, 50),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_every_form_stays_close_to_float_on_images_it_never_saw(
    model: Path, tmp_path: Path, settings: dict[str, str], sqnr_db: float
) -> None:
    result = quantize_onnx(model, IMAGES, QuantizeSettings.model_validate(settings), tmp_path / "q.onnx")
    difference = measure("logits", logits(model), logits(result.path, optimize=False), Head())
    assert difference.sqnr_db >= sqnr_db
    assert difference.agreement is not None and difference.agreement >= 0.96
    assert result.path.stat().st_size < 0.6 * model.stat().st_size


@pytest.mark.parametrize("target", ["ort-x86", "portable"])
def test_a_file_for_any_x86_means_the_same_with_and_without_the_runtimes_optimisations(
    model: Path, tmp_path: Path, target: Target
) -> None:
    path = quantize_onnx(model, IMAGES, QuantizeSettings(target=target), tmp_path / "q.onnx").path
    reference = logits(model)
    optimised = measure("logits", reference, logits(path)).sqnr_db
    as_written = measure("logits", reference, logits(path, optimize=False)).sqnr_db
    assert abs(optimised - as_written) <= 0.5


@pytest.mark.filterwarnings("ignore:Calibrating on 48 images")  # few, and enough to compare
def test_the_batch_size_of_calibration_changes_no_byte(model: Path, tmp_path: Path) -> None:
    made = []
    for size in (1, 7, 32):
        settings = QuantizeSettings(target="tensorrt", preset="fast", batch_size=size)
        made.append(quantize_onnx(model, IMAGES[:48], settings, tmp_path / f"{size}.onnx").path.read_bytes())
    assert made[0] == made[1] == made[2]


def test_saved_statistics_give_the_same_file_as_a_new_pass(model: Path, tmp_path: Path) -> None:
    settings = QuantizeSettings(target="tensorrt", preset="fast")
    statistics = tmp_path / "statistics.npz"
    first = quantize_onnx(model, IMAGES, settings, tmp_path / "a.onnx", statistics=statistics)
    written = statistics.stat().st_mtime_ns
    second = quantize_onnx(model, IMAGES, settings, tmp_path / "b.onnx", statistics=statistics)
    assert statistics.stat().st_mtime_ns == written
    assert first.path.read_bytes() == second.path.read_bytes()
    assert statistics in second.companions


def test_exactly_the_body_is_quantized_and_tensorrt_gets_what_it_accepts(quantized: StageResult) -> None:
    """All of it but the layers that the result says stayed float."""
    graph = ir.load(quantized.path)
    linears = find_linears(graph)
    body = [layer.name for layer in linears if layer.role in BODY]
    assert len(body) == 4 * len({layer.block for layer in linears if layer.block is not None})
    done, kept = quantized.details["quantized"], quantized.details["kept_float"]
    assert sorted([*done, *kept]) == sorted(body)
    assert 0 < len(kept) < len(done)
    assert list(violations(graph, layers=done, symmetric=True)) == []
    types = {t.data_type for t in onnx.load(str(quantized.path)).graph.initializer}
    assert onnx.TensorProto.UINT8 not in types and onnx.TensorProto.INT8 in types


def test_tensorrt_takes_a_file_with_rotations(quantized: StageResult) -> None:
    graph = ir.load(quantized.path)
    fc2 = [name for name in quantized.details["quantized"] if name.endswith(".fc2")]
    assert len([node for node in graph.graph if is_rotation(node)]) == len(fc2) > 0
    for release in ("10.3", "11", "rtx"):
        assert lint_model(quantized.path, parse_target(f"tensorrt:{release}")) == ()
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from tests.support.rtx import parses_and_builds

    accepted, reason = parses_and_builds(quantized.path, "8.9")
    assert accepted, reason


def broken(path: Path, change: str) -> ir.Model:
    """Return the quantized graph with one postcondition broken."""
    proto = onnx.load(str(path))
    graph = proto.graph
    by_name = {tensor.name: tensor for tensor in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in by_name]
    if change == "zero point":
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(3, np.int8), "three"))
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] == quantizers[0].input[1]:
                del node.input[2:]
                node.input.append("three")
    elif change == "axis":
        next(a for a in weights[0].attribute if a.name == "axis").i = 0
    elif change == "dangling":
        extra = onnx.helper.make_node(
            "QuantizeLinear", list(quantizers[0].input), ["nobody"], name="extra/QuantizeLinear"
        )
        graph.node.insert(list(graph.node).index(quantizers[0]) + 1, extra)
    elif change == "scale":
        tensor = by_name[quantizers[0].input[1]]
        tensor.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(tensor), tensor.name))
    return ir.from_proto(proto)


@pytest.mark.parametrize(
    ("change", "rule"),
    [("zero point", "symmetric"), ("axis", "axis"), ("dangling", "dangling"), ("scale", "scale")],
)
def test_each_postcondition_notices_a_graph_that_breaks_it(quantized: StageResult, change: str, rule: str) -> None:
    found = violations(broken(quantized.path, change), layers=quantized.details["quantized"], symmetric=True)
    assert rule in {violation.rule for violation in found}


def test_a_layer_too_few_or_too_many_is_a_breach(quantized: StageResult) -> None:
    graph, done = ir.load(quantized.path), quantized.details["quantized"]
    head = [layer.name for layer in find_linears(graph) if layer.role == "head"]
    for asked in (done[1:], [*done, *head], [*done, *quantized.details["kept_float"][:1]]):
        assert "layers" in {violation.rule for violation in violations(graph, layers=asked, symmetric=True)}


def test_bad_calibration_images_are_refused_with_the_reason(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    settings = QuantizeSettings(preset="fast")
    with pytest.raises(CalibrationError, match="at least 16 calibration images, found 0"):
        quantize_onnx(model, [], settings, out)
    copies = [Path(shutil.copy(IMAGES[0], tmp_path / f"{index}.png")) for index in range(20)]
    with pytest.raises(CalibrationError, match="found 1 among 20 files"):
        quantize_onnx(model, copies, settings, out)
    copies[3].write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"3\.png"):
        quantize_onnx(model, [*IMAGES, copies[3]], settings, out)
    with pytest.warns(CalibrationWarning, match="Calibrating on 20 images"):
        quantize_onnx(model, IMAGES[:20], settings, out)


def test_a_model_that_cannot_be_quantized_is_refused(model: Path, int8: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    with pytest.raises(QuantizeError, match="Expected a float model"):
        quantize_onnx(int8, IMAGES, QuantizeSettings(preset="fast"), out)
    proto = onnx.load(str(model))
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 2 and min(t.dims) > 16)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(proto, str(tmp_path / "nan.onnx"))
    zero = onnx.load(str(model))
    zero.graph.node.append(onnx.helper.make_node("Sub", ["before", "before"], [zero.graph.output[0].name]))
    for node in zero.graph.node[:-1]:
        node.output[:] = ["before" if name == zero.graph.output[0].name else name for name in node.output]
    onnx.save(zero, str(tmp_path / "zero.onnx"))
    for precision in ("int8", "fp16"):
        asked = QuantizeSettings(preset="fast", precision=precision, target="tensorrt")
        with pytest.raises(CalibrationError, match="found an output of 0 for all"):
            quantize_onnx(tmp_path / "zero.onnx", IMAGES, asked, out)
    with pytest.raises(CalibrationError):
        quantize_onnx(tmp_path / "nan.onnx", IMAGES, QuantizeSettings(preset="fast"), out)
    assert not out.exists()
