"""A 16-bit body: ranges; what would overflow stays in float32, and what ONNX permits no such type in the opset."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.input_plans import input_plan
from tests.support.ir_graphs import graph, random
from tests.support.paths import CALIBRATION
from vitexport.bundle.metadata import ModelMetadata
from vitexport.host.graph.file import read_onnx, write_onnx
from vitexport.host.graph.intermediate import open_exposed
from vitexport.host.quantize import quantize_onnx
from vitexport.host.quantize.calibration.calibrate import ImageFeeds, run_images
from vitexport.host.quantize.planning.layers import choose_layers, layers_by_input
from vitexport.host.quantize.planning.transforms import apply_to_source, find_absorber, fold_into_consumers
from vitexport.host.quantize.qdq.body16 import float_ranges, to_body16
from vitexport.inputs.images import batches, list_images
from vitexport.recipe.settings import QuantizeSettings
from vitexport.runtimes import open_runtime
from vitexport.tensors import Array
from vitexport.verification.parity import measure

IMAGES = list_images(CALIBRATION, limit=16)


def test_ranges_taken_inside_the_graph_are_those_of_the_tensors_themselves(model: Path, tmp_path: Path) -> None:
    graph = read_onnx(model)
    metadata = ModelMetadata.from_metadata(graph.metadata_props, where=str(model))
    feeds = ImageFeeds(IMAGES, metadata.preprocess, metadata.model.inputs[0], tmp_path)
    nodes = len(graph.graph)
    ranges, logits = float_ranges(graph, feeds, [0, 2, 5], "logits")
    assert len(graph.graph) == nodes  # the graph itself stays as it was
    computed = {str(value.name) for node in graph.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    assert set(ranges) == computed
    with open_exposed(graph, list(ranges)) as runtime:
        outputs = list(run_images(runtime, feeds, [0, 2, 5]))
    np.testing.assert_allclose(np.stack(logits), np.stack([one["logits"] for one in outputs]), rtol=1e-4, atol=1e-5)
    for name, largest in ranges.items():
        np.testing.assert_allclose(largest, max(np.abs(one[name]).max() for one in outputs), rtol=1e-4)
    assert len({round(value, 3) for value in ranges.values()}) > 20


@pytest.fixture(scope="module")
def loud(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function with values 30 000 times as large inside one attention, undone by the next layer."""
    graph = read_onnx(model)
    groups = layers_by_input(choose_layers(graph, where=str(model))).values()
    group = next(group for group in groups if group[0].group == "1.proj")
    scale = np.full(group[0].shape[0], 1 / 30_000, dtype=np.float32)
    absorber = find_absorber(group)
    assert absorber.kind == "value"
    fold_into_consumers(graph.graph, group, input_plan(scale))
    apply_to_source(graph.graph, absorber, scale, np.zeros_like(scale))
    out = tmp_path_factory.mktemp("loud") / "loud.onnx"
    write_onnx(graph, out)
    return out


def _logits(path: Path) -> Array:
    with open_runtime(path) as runtime:
        metadata = ModelMetadata.from_metadata(runtime.metadata, where=str(path))
        tensor = runtime.inputs[0]
        feed = next(batches(IMAGES, metadata.preprocess, tensor, len(IMAGES)))
        return runtime.run({tensor.name: feed})["logits"].astype(np.float32)


@pytest.mark.filterwarnings("ignore:Calibrating on 16 images")  # nothing is calibrated but ranges
@pytest.mark.parametrize(("precision", "keeps"), [("fp16", True), ("bf16", False)])
def test_what_would_overflow_stays_float32_and_is_named(
    precision: Literal["fp16", "bf16"], keeps: bool, loud: Path, tmp_path: Path
) -> None:
    result = quantize_onnx(loud, IMAGES, QuantizeSettings(precision=precision), tmp_path / "body16.onnx")
    form = r"its values reach \S+, more than 1/4 of float16's largest number 6.55e\+04"
    assert any(re.fullmatch(form, why) for why in result.details["kept_float32"].values()) == keeps
    if precision == "fp16":  # ONNX Runtime's CPU provider has no bfloat16 kernels to run it with
        assert measure("logits", _logits(loud), _logits(result.path)).sqnr_db >= 50


@pytest.mark.filterwarnings("ignore:Calibrating on 16 images")
def test_a_quantized_layer_next_to_what_overflows_stays_whole(loud: Path, tmp_path: Path) -> None:
    settings = QuantizeSettings(target="tensorrt", preset="fast")
    result = quantize_onnx(loud, IMAGES, settings, tmp_path / "int8.onnx")
    assert any("dequantize" in node for node in result.details["kept_float32"])
    casts = [node for node in read_onnx(result.path).graph if node.op_type == "Cast"]
    sources = [node.inputs[0].producer() for node in casts if node.inputs[0] is not None]
    assert casts and not [node for node in sources if node is not None and node.op_type == "DequantizeLinear"]
    assert measure("logits", _logits(loud), _logits(result.path)).sqnr_db >= 15


CONVOLUTION = """g (float[n, 3, 8, 8] x, float[4, 3, 4, 4] w) => (float[n, 4, 2, 2] y) {
    c = Conv <kernel_shape = [4, 4], strides = [4, 4]> (x, w)
    y = Relu(c)
}"""


@pytest.mark.parametrize(
    ("opset", "dtype", "kept"),
    [
        (20, "bfloat16", "ONNX permits bfloat16 for Conv from opset 22 on, and the file has 20"),
        (22, "bfloat16", None),
        (17, "float16", None),
    ],
)
def test_an_operator_without_the_type_in_this_opset_stays_float32(opset: int, dtype: str, kept: str | None) -> None:
    made = graph(CONVOLUTION, {"w": random(4, 3, 4, 4)}, opset=opset)
    for node in made.graph:
        node.name = node.op_type
    report = to_body16(made, dtype, {})
    assert report.kept == ({} if kept is None else {"Conv": kept})
    types = {node.op_type: str(node.outputs[0].dtype).lower() for node in made.graph if node.op_type != "Cast"}
    assert types == {"Conv": dtype if kept is None else "float", "Relu": dtype}
    onnx.checker.check_model(ir.to_proto(made), full_check=True)


def test_inputs_that_are_float32_by_definition_stay_so() -> None:
    text = """g (float[1, 3, 8, 8] x, float[4] s) => (float[a, b, c, d] y) {
        s2 = Relu(s)
        y = Resize(x, , s2)
    }"""
    made = graph(text)
    assert not to_body16(made, "float16", {}).kept
    (resize,) = (node for node in made.graph if node.op_type == "Resize")
    assert [None if v is None else v.dtype for v in resize.inputs] == [ir.DataType.FLOAT16, None, ir.DataType.FLOAT]
    onnx.checker.check_model(ir.to_proto(made), full_check=True)


def test_without_ranges_the_same_graph_overflows(loud: Path, tmp_path: Path) -> None:
    graph = read_onnx(loud)
    assert not to_body16(graph, "float16", {}).kept
    write_onnx(graph, tmp_path / "body16.onnx")
    assert not np.isfinite(_logits(tmp_path / "body16.onnx")).all()
