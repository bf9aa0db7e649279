"""Each transform before quantization leaves the float outputs as they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.input_plans import input_plan
from tests.support.paths import ROOT
from vitexport.bundle.metadata import ModelMetadata
from vitexport.host.graph.constants import array_of
from vitexport.host.graph.file import read_onnx
from vitexport.host.graph.hadamard import is_rotation
from vitexport.host.graph.layers import find_linears
from vitexport.host.quantize.calibration.calibrate import ImageFeeds, collect_statistics
from vitexport.host.quantize.calibration.statistics import StatisticsConfig, TensorStatistics
from vitexport.host.quantize.numerics.rotation import Rotation
from vitexport.host.quantize.planning.attention import AttentionPlan, attention_tensors, plan_attention
from vitexport.host.quantize.planning.attention_planner import AttentionPlanner
from vitexport.host.quantize.planning.attention_scales import AttentionScales
from vitexport.host.quantize.planning.layers import QuantizedLayer, choose_layers, layers_by_input
from vitexport.host.quantize.planning.plan import GraphPlan, plan_tensors
from vitexport.host.quantize.planning.transforms import (
    apply_explicitly,
    apply_to_source,
    ensure_biases,
    find_absorber,
    fold_into_consumers,
    replace_constant,
    rotate,
    zero_key_biases,
)
from vitexport.host.quantize.qdq.body16 import to_body16
from vitexport.host.quantize.qdq.build import build_transformed
from vitexport.host.quantize.scheme import scheme_of
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import QuantizeSettings
from vitexport.runtimes import open_runtime
from vitexport.tensors import Array

TOLERANCE = 1e-4
IMAGES = 16


@pytest.fixture
def graph(model: Path) -> ir.Model:
    """The model with every constant moved: zero biases and unit weights would hide errors."""
    graph = read_onnx(model)
    rng = np.random.default_rng(11)
    for value in graph.graph.initializers.values():
        array = array_of(value)
        assert array is not None
        if array.dtype == np.float32 and array.size > 1:
            moved = array * rng.uniform(0.8, 1.2, array.shape) + rng.normal(0, 0.02, array.shape)
            value.const_value = ir.tensor(moved.astype(np.float32), name=value.name)
    return graph


@pytest.fixture(scope="module")
def feeds(model: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageFeeds:
    metadata = ModelMetadata.from_metadata(read_onnx(model).metadata_props, where="model")
    images = list_images(ROOT / "calib" / "calibration", limit=IMAGES)
    return ImageFeeds(images, metadata.preprocess, metadata.model.inputs[0], tmp_path_factory.mktemp("feeds"))


def outputs(graph: ir.Model, feeds: ImageFeeds, folder: Path) -> Array:
    path = folder / "model.onnx"
    ir.save(graph, path)
    with open_runtime(path) as runtime:
        feed = np.concatenate([feeds.image(index) for index in range(8)])
        return runtime.run({runtime.inputs[0].name: feed})["logits"]


def assert_unchanged(before: Array, graph: ir.Model, feeds: ImageFeeds, folder: Path) -> None:
    after = outputs(graph, feeds, folder)
    assert np.abs(after - before).max() <= TOLERANCE * np.abs(before).max()


def statistics(graph: ir.Model, feeds: ImageFeeds, names: list[str]) -> dict[str, TensorStatistics]:
    return collect_statistics(graph, dict.fromkeys(names, StatisticsConfig(sample_rows=64)), feeds)


def shared_inputs(graph: ir.Model, kind: str) -> list[tuple[QuantizedLayer, ...]]:
    groups = layers_by_input(choose_layers(graph, where="model")).values()
    return [group for group in groups if find_absorber(group).kind == kind]


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_any_channel_scale_and_shift_is_absorbed_by_the_producer(
    graph: ir.Model, feeds: ImageFeeds, tmp_path: Path, kind: str
) -> None:
    before = outputs(graph, feeds, tmp_path)
    rng = np.random.default_rng(2)
    groups = shared_inputs(graph, kind)
    assert groups
    for group in groups:
        channels = group[0].shape[0]
        scale = rng.uniform(0.3, 3, channels).astype(np.float32)
        shift = rng.normal(0, 0.5, channels).astype(np.float32)
        fold_into_consumers(graph.graph, group, input_plan(scale, shift))
        apply_to_source(graph.graph, find_absorber(group), scale, shift)
    assert_unchanged(before, graph, feeds, tmp_path)


def test_a_shift_after_gelu_is_subtracted_in_one_node(graph: ir.Model, feeds: ImageFeeds, tmp_path: Path) -> None:
    before, nodes = outputs(graph, feeds, tmp_path), len(graph.graph)
    groups = shared_inputs(graph, "gelu")
    assert groups
    for group in groups:
        ones = np.ones(group[0].shape[0], dtype=np.float32)
        fold_into_consumers(graph.graph, group, input_plan(ones, 0.7 * ones))
        apply_explicitly(graph.graph, group[0].input, ones, 0.7 * ones, [layer.linear.matmul for layer in group])
    assert len(graph.graph) == nodes + len(groups)
    assert_unchanged(before, graph, feeds, tmp_path)


@pytest.mark.parametrize("size", [16, 64])
def test_a_rotation_is_undone_by_the_weight_and_is_no_layer(
    graph: ir.Model, feeds: ImageFeeds, tmp_path: Path, size: int
) -> None:
    before, nodes, layers = outputs(graph, feeds, tmp_path), len(graph.graph), names_and_roles(graph)
    groups = shared_inputs(graph, "gelu")
    assert groups
    for group in groups:
        choice = input_plan(np.ones(group[0].shape[0], dtype=np.float32), rotation=Rotation(size))
        fold_into_consumers(graph.graph, group, choice)
        rotate(graph.graph, group[0].input, Rotation(size), [layer.linear.matmul for layer in group])
    assert len(graph.graph) == nodes + 3 * len(groups)
    assert_unchanged(before, graph, feeds, tmp_path)
    for body in ("float32", "float16", "bfloat16"):
        copy = graph.clone()
        if body != "float32":
            to_body16(copy, body, {})
        assert sum(is_rotation(node) for node in copy.graph) == len(groups)
        assert names_and_roles(copy) == layers, body


def names_and_roles(graph: ir.Model) -> list[tuple[str, str, int | None]]:
    return [(layer.name, layer.role, layer.block) for layer in find_linears(graph)]


def test_the_key_bias_cannot_be_seen(graph: ir.Model, feeds: ImageFeeds, tmp_path: Path) -> None:
    before = outputs(graph, feeds, tmp_path)
    assert zero_key_biases(graph) > 0
    assert_unchanged(before, graph, feeds, tmp_path)


def test_a_query_bias_can_be_seen(graph: ir.Model, feeds: ImageFeeds, tmp_path: Path) -> None:
    """The comparison above notices a transform that is wrong."""
    before = outputs(graph, feeds, tmp_path)
    layer = next(layer for layer in choose_layers(graph, where="model") if layer.linear.role == "qkv")
    add = layer.linear.add
    assert add is not None
    index = next(index for index, value in enumerate(add.inputs) if value is layer.bias_value)
    replace_constant(graph.graph, add, index, np.zeros(layer.shape[1], dtype=np.float32))
    assert np.abs(outputs(graph, feeds, tmp_path) - before).max() > 10 * TOLERANCE * np.abs(before).max()


def planned_attention(graph: ir.Model, feeds: ImageFeeds, *, rows: bool, centred: bool) -> tuple[AttentionPlan, ...]:
    """Plan every attention with a gain that differs from channel to channel."""
    tensors = attention_tensors(graph)
    assert tensors
    collected = statistics(graph, feeds, [name for names in tensors.values() for name in names])
    scales = {
        name: AttentionScales(1.0, collected[value].mean.astype(np.float32), 1 + np.abs(collected[value].maximum))
        for name, (_, _, value) in tensors.items()
    }
    untouched = np.ones(1, np.float32), np.zeros(1, np.float32)
    values = {value: untouched for _, _, value in tensors.values()} if centred else {}
    scheme = scheme_of(QuantizeSettings(target="tensorrt"))
    return plan_attention(graph, tensors, collected, values, scales, scheme, rows=rows, images=IMAGES)


@pytest.mark.parametrize("rows", [False, True])
def test_queries_and_keys_are_balanced_and_keys_centred(
    graph: ir.Model, feeds: ImageFeeds, tmp_path: Path, rows: bool
) -> None:
    """Values that were not centred get no gain, which would be one around another centre."""
    before = outputs(graph, feeds, tmp_path)
    plans = planned_attention(graph, feeds, rows=rows, centred=False)
    assert all((plan.gain == 1).all() and plan.key_offset.any() and plan.query_scale.std() > 0.05 for plan in plans)
    changed = build_transformed(graph, GraphPlan((), {}, plans))
    divisions = [node for node in changed.graph if str(node.name).endswith(".divide")]
    assert len(divisions) == (len(plans) if rows else 0)
    assert_unchanged(before, changed, feeds, tmp_path)


def test_gains_multiply_the_values_and_nothing_else(graph: ir.Model, feeds: ImageFeeds, tmp_path: Path) -> None:
    before = outputs(graph, feeds, tmp_path)
    plans = planned_attention(graph, feeds, rows=False, centred=True)
    changed = build_transformed(graph, GraphPlan((), {}, plans))
    assert np.abs(outputs(changed, feeds, tmp_path) - before).max() > 0.1 * np.abs(before).max()
    layers = choose_layers(changed, where="model")
    consumers = {layer.linear.block: layer for layer in layers if layer.linear.role == "proj"}
    for plan in plans:
        fold_into_consumers(changed.graph, [consumers[plan.block]], input_plan(1 / plan.gain))
    assert_unchanged(before, changed, feeds, tmp_path)


def test_missing_biases_are_added_as_zeros(graph: ir.Model, feeds: ImageFeeds, tmp_path: Path) -> None:
    for layer in choose_layers(graph, where="model"):
        if layer.linear.add is not None:
            layer.linear.add.outputs[0].replace_all_uses_with(layer.linear.matmul.outputs[0])
            graph.graph.remove(layer.linear.add, safe=True)
    before = outputs(graph, feeds, tmp_path)
    layers = choose_layers(graph, where="model")
    assert ensure_biases(graph, layers)
    assert all(layer.bias_value is not None for layer in choose_layers(graph, where="model"))
    assert_unchanged(before, graph, feeds, tmp_path)


def planned(graph: ir.Model, feeds: ImageFeeds, settings: QuantizeSettings) -> GraphPlan:
    """Plan all transforms as the quantizer does; no weight is rounded."""
    scheme, images = scheme_of(settings), range(IMAGES)
    layers = choose_layers(graph, where="model")
    attention = AttentionPlanner(graph, layers, settings, scheme, where="model")
    operands = [name for names in attention.tensors.values() for name in names]
    collected = statistics(graph, feeds, [*layers_by_input(layers), *operands])
    fitted = attention.fit(collected, feeds, images, class_token=True)
    tensors = plan_tensors(layers, fitted, settings, scheme, class_token=True, images=IMAGES)
    return GraphPlan(tensors, {}, attention.plan(tensors, collected, IMAGES))


@pytest.mark.parametrize(
    "settings",
    [
        {"target": "tensorrt"},
        {"target": "ort-x86"},
        {"target": "tensorrt", "rotate": "none"},
        {"target": "tensorrt", "rotate": "16"},
        {"target": "ort-x86", "rotate": "64"},
        {"target": "tensorrt", "rotate": "16", "attention": "int8-rows"},
        {"target": "tensorrt", "rotate": "16", "precision": "fp8"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_everything_that_is_planned_together_changes_nothing(
    graph: ir.Model, feeds: ImageFeeds, tmp_path: Path, settings: dict[str, str]
) -> None:
    """With everything quantized, and with part of it left in float."""
    before = outputs(graph, feeds, tmp_path)
    plan = planned(graph, feeds, QuantizeSettings.model_validate(settings))
    assert {tensor.kind for tensor in plan.tensors} >= {"norm", "value", "gelu"}
    rotated = [tensor for tensor in plan.tensors if tensor.choice.rotation is not None]
    if settings.get("rotate", "none") != "none":
        assert len(rotated) == len(shared_inputs(graph, "gelu"))
    for kept in ((), ("0.proj", "1.fc1", "2.fc2"), ("1.qkv", "3.fc2", "2.attention")):
        changed = build_transformed(graph, plan, kept)
        found = [node for node in changed.graph if is_rotation(node)]
        assert len(found) == len([one for one in rotated if one.layers[0].group not in kept])
        assert_unchanged(before, changed, feeds, tmp_path)


@pytest.mark.parametrize("rotate", ["none", "16"])
def test_a_group_that_stays_float_gets_its_own_input_back(graph: ir.Model, feeds: ImageFeeds, rotate: str) -> None:
    """No shift, no rotation; the norm before it, its weight and its bias are those of the float graph."""
    settings = QuantizeSettings.model_validate({"target": "tensorrt", "rotate": rotate})
    plan = planned(graph, feeds, settings)
    for kept in (["1.fc1", "1.fc2"], ["1.fc2"], ["1.qkv"], ["1.proj"]):
        changed = build_transformed(graph, plan, kept)
        before, after = (
            [layer for layer in choose_layers(one, where="model") if layer.group in kept] for one in (graph, changed)
        )
        assert len(before) == len(after) == len(kept)
        for mine, own in zip(before, after, strict=True):
            assert own.input_name == mine.input_name
            assert all(np.array_equal(a, b) for a, b in zip(constants_before(own), constants_before(mine), strict=True))
            if own.linear.role != "qkv":  # its key biases go, and its values are scaled for the layer after attention
                np.testing.assert_array_equal(own.weight(), mine.weight())
                np.testing.assert_array_equal(own.bias(), mine.bias())
    read = [layer.input_name for layer in choose_layers(build_transformed(graph, plan), where="model")]
    explicit = [name for name in read if name.endswith((".shifted", ".rotated"))]
    assert len(explicit) == len(shared_inputs(graph, "gelu"))  # otherwise nothing was there to be left out


def constants_before(layer: QuantizedLayer) -> Sequence[Array]:
    """Return the constants of the node that makes a layer's input: weight and bias of a norm."""
    producer = layer.input.producer()
    assert producer is not None
    arrays = [array_of(value) for value in producer.inputs]
    return [array for array in arrays if array is not None]


def test_the_bias_makes_up_for_the_shift_that_a_float16_body_subtracts(graph: ir.Model, feeds: ImageFeeds) -> None:
    plan = planned(graph, feeds, QuantizeSettings(target="tensorrt", rotate="none"))
    shifts = np.array([tensor.choice.shift[0] for tensor in plan.tensors if tensor.kind == "gelu"])
    assert shifts.all()
    np.testing.assert_array_equal(shifts, shifts.astype(np.float16))
