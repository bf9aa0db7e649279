"""Every file that is written is valid ONNX, at every opset that can be exported; what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import timm
import torch
from onnx import TensorProto, helper

from tests.support.ir_graphs import graph, random
from tests.support.paths import CALIBRATION
from vitexport.errors import NoKernelError, QuantizeError
from vitexport.host.export import export_onnx
from vitexport.host.graph.file import read_onnx, unload_weights, write_onnx
from vitexport.host.graph.scopes import MODULE_KEY
from vitexport.host.quantize import quantize_onnx
from vitexport.host.quantize.qdq.valid import check_valid, raise_opset
from vitexport.host.quantize.scheme import QdqScheme
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources.live import wrap_module
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import ExportSettings, QuantizeSettings, SimplifySettings
from vitexport.runtimes import open_runtime

IMAGES = list_images(CALIBRATION, limit=16)
TARGETS = ("tensorrt", "ort-x86", "ort-arm64", "portable")
PRECISIONS = ("int8", "fp8", "fp16", "bf16")
SHAPES = (("a", [2, 3]), ("b", [4, 5]), ("c", [2, 5]))
HALF_SCALES = QdqScheme(float16_scales=True, body="float16")

pytestmark = pytest.mark.filterwarnings("ignore:Calibrating on 16 images")


def exported(folder: Path, opset: int, pool: str = "token") -> Path:
    """Export a ViT of two blocks, every parameter random; give the canonical graph."""
    torch.manual_seed(0)
    size = {"img_size": 14, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    module = timm.models.vision_transformer.VisionTransformer(**size, global_pool=pool)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    spec = {"image_size": [14, 14], "mean": [0.5] * 3, "std": [0.5] * 3, "resize": {"size": [14, 14]}}
    written = export_onnx(wrap_module(module, spec), ExportSettings(opset=opset), folder / "exported.onnx")
    return simplify_onnx(written.path, SimplifySettings(onnxsim=False), folder / "model.onnx").path


def settings_of(target: str, precision: str) -> QuantizeSettings:
    return QuantizeSettings.model_validate({"target": target, "precision": precision, "preset": "fast"})


@pytest.mark.parametrize("opset", range(17, 24))
def test_every_target_and_precision_gives_a_valid_file(opset: int, tmp_path: Path) -> None:
    model = exported(tmp_path, opset)
    for target in TARGETS:
        for precision in PRECISIONS:
            what, out = f"{target}-{precision}", tmp_path / f"{target}-{precision}.onnx"
            # A refusal would be a QuantizeError: none of these 112 may be refused.
            result = quantize_onnx(
                model, IMAGES, settings_of(target, precision), out, statistics=tmp_path / "statistics.npz"
            )
            onnx.checker.check_model(str(out), full_check=True)
            raised = opset < 19 and (precision == "fp8" or (target, precision) == ("tensorrt", "int8"))
            assert read_onnx(out).opset_imports[""] == (19 if raised else opset), what
            assert result.details.get("opset", "").startswith(f"raised from {opset} to 19") == raised, what
            kept = {name.rpartition("/")[2]: why for name, why in result.details.get("kept_float32", {}).items()}
            assert list(kept) == (["Conv"] if precision == "bf16" and opset < 22 else []), what
            assert all(f"from opset 22 on, and the file has {opset}" in why for why in kept.values())
            if precision == "bf16":  # ONNX Runtime's CPU provider multiplies no bfloat16
                with pytest.raises(NoKernelError, match="NOT_IMPLEMENTED"):
                    open_runtime(out)
                continue
            with open_runtime(out) as runtime:
                logits = runtime.run({"pixel_values": random(2, 3, 14, 14)})["logits"]
            assert np.isfinite(logits).all(), what


def with_an_old_mean(path: Path) -> Path:
    """Write a model of opset 18 as one of opset 17, where a mean has its axes as an attribute."""
    model = read_onnx(path)
    (mean,) = (node for node in model.graph if node.op_type == "ReduceMean")
    mean.resize_inputs(1)
    del mean.attributes["noop_with_empty_axes"]
    mean.attributes["axes"] = ir.AttrInt64s("axes", [1])
    model.opset_imports[""] = 17
    write_onnx(model, path.with_name("old.onnx"), check_valid)
    return path.with_name("old.onnx")


def test_what_cannot_be_converted_is_refused_before_images_run(tmp_path: Path) -> None:
    model = with_an_old_mean(exported(tmp_path, 18, pool="avg"))
    refused = {
        (target, precision)
        for target in TARGETS
        for precision in PRECISIONS
        if (precision == "fp8") or (target, precision) == ("tensorrt", "int8")
    }
    for target, precision in refused:
        with pytest.raises(QuantizeError, match="ReduceMean") as caught:
            quantize_onnx(model, IMAGES, settings_of(target, precision), tmp_path / "out.onnx")
        assert "opset 19" in caught.value.message and "found one of opset 17" in caught.value.message
        assert "--opset 20" in caught.value.hint
        assert not (tmp_path / "out.onnx").exists()
    for target, precision in {("portable", "int8"), ("tensorrt", "fp16"), ("tensorrt", "bf16")}:
        check_valid(quantize_onnx(model, IMAGES, settings_of(target, precision), tmp_path / "out.onnx").path)


def plain(opset: int, ir_version: int = 10) -> ir.Model:
    text = "g (float[n, 256] x, float[256, 256] w) => (float[n, 256] y) { m = MatMul(x, w)\n y = Relu(m) }"
    model = graph(text, {"w": random(256, 256)}, opset=opset)
    model.ir_version = ir_version
    model.metadata_props["vitexport.schema"] = "1"
    for node in model.graph:
        node.name, node.metadata_props[MODULE_KEY] = f"blocks.0/{node.op_type}", "blocks.0"
    return model


def test_raising_keeps_names_metadata_and_weights_in_their_file(tmp_path: Path) -> None:
    write_onnx(plain(18, ir_version=8), tmp_path / "model.onnx")
    model = read_onnx(tmp_path / "model.onnx")
    unload_weights(model, tmp_path)
    words = raise_opset(model, HALF_SCALES, tmp_path)
    assert words == "raised from 18 to 19, the first with float16 in QuantizeLinear"
    assert (model.opset_imports[""], model.ir_version) == (19, 9)
    assert model.metadata_props == {"vitexport.schema": "1"}
    found = {node.name: node.metadata_props[MODULE_KEY] for node in model.graph}
    assert found == {"blocks.0/MatMul": "blocks.0", "blocks.0/Relu": "blocks.0"}
    weight = model.graph.initializers["w"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    np.testing.assert_array_equal(weight.numpy(), random(256, 256))


@pytest.mark.parametrize(
    ("opset", "scheme", "expected"),
    [
        (19, HALF_SCALES, ""),
        (17, QdqScheme(), ""),
        (17, QdqScheme(activation="uint8"), ""),
        (17, QdqScheme("float8_e4m3fn", "float8_e4m3fn"), "raised from 17 to 19, the first with float8_e4m3fn in"),
        (
            18,
            QdqScheme("float8_e4m3fn", "float8_e4m3fn", True, "float16"),
            "raised from 18 to 19, the first with float16 and float8_e4m3fn in",
        ),
    ],
)
def test_the_opset_is_raised_where_q_and_dq_need_it(
    opset: int, scheme: QdqScheme, expected: str, tmp_path: Path
) -> None:
    model = plain(opset)
    assert raise_opset(model, scheme, tmp_path).startswith(expected)
    assert model.opset_imports[""] == (19 if expected else opset)


def test_a_converter_that_does_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onnxscript.version_converter.convert_version", lambda model, version: None)
    with pytest.raises(QuantizeError, match="the converter left it at opset 17"):
        raise_opset(plain(17), HALF_SCALES, tmp_path)


def test_a_converter_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(model: ir.Model, version: int) -> None:
        raise RuntimeError("no rule for it")

    monkeypatch.setattr("onnxscript.version_converter.convert_version", fail)
    with pytest.raises(QuantizeError, match="cannot be converted: no rule for it"):
        raise_opset(plain(17), HALF_SCALES, tmp_path)


def test_the_checker_is_quoted_and_an_invalid_file_is_not_left_behind(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vitexport.host.quantize.qdq.body16.permits_output", lambda *_: True)
    out = tmp_path / "out" / "bf16.onnx"
    with pytest.raises(QuantizeError, match="op_type:Conv.*Inferred elem type"):
        quantize_onnx(model, IMAGES, settings_of("tensorrt", "bf16"), out)
    assert list(out.parent.iterdir()) == []


def test_weights_beside_the_file_are_part_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vitexport.host.graph.file.EXTERNAL_DATA_BYTES", 1000)
    assert write_onnx(plain(20), tmp_path / "m.onnx", check_valid) == (tmp_path / "m.onnx.data",)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(QuantizeError, match="m.onnx.data"):
        check_valid(tmp_path / "m.onnx")


def test_shapes_are_inferred_strictly(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in SHAPES]
    made = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "g", values[:2], values[2:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "m.onnx")
    with pytest.raises(QuantizeError, match="Incompatible dimensions"):
        check_valid(tmp_path / "m.onnx")
