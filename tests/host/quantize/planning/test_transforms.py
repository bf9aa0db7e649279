"""Each transform before quantization leaves the float outputs as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.paths import ROOT
from vitexport.bundle.metadata import ModelMetadata
from vitexport.host.graph.constants import array_of
from vitexport.host.graph.file import read_onnx
from vitexport.host.quantize.calibration.calibrate import ImageFeeds, collect_statistics
from vitexport.host.quantize.calibration.statistics import StatisticsConfig, TensorStatistics
from vitexport.host.quantize.planning.attention import attention_tensors, plan_attention
from vitexport.host.quantize.planning.attention_scales import AttentionScales
from vitexport.host.quantize.planning.layers import QuantizedLayer, choose_layers, layers_by_input
from vitexport.host.quantize.planning.plan import plan_tensors
from vitexport.host.quantize.planning.transforms import (
    apply_explicitly,
    apply_to_source,
    ensure_biases,
    find_absorber,
    fold_into_consumers,
    replace_constant,
    zero_key_biases,
)
from vitexport.host.quantize.scheme import scheme_of
from vitexport.inputs.images import list_images
from vitexport.recipe.settings import QuantizeSettings
from vitexport.runtimes import open_runtime
from vitexport.tensors import Array

TOLERANCE = 1e-4


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
    images = list_images(ROOT / "calib" / "calibration", limit=16)
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
        fold_into_consumers(graph.graph, group, scale, shift)
        apply_to_source(graph.graph, find_absorber(group), scale, shift)
    assert_unchanged(before, graph, feeds, tmp_path)


def test_a_shift_after_gelu_is_subtracted_in_one_node(graph: ir.Model, feeds: ImageFeeds, tmp_path: Path) -> None:
    before, nodes = outputs(graph, feeds, tmp_path), len(graph.graph)
    groups = shared_inputs(graph, "gelu")
    assert groups
    for group in groups:
        ones = np.ones(group[0].shape[0], dtype=np.float32)
        fold_into_consumers(graph.graph, group, ones, 0.7 * ones)
        apply_explicitly(graph.graph, group[0].input, ones, 0.7 * ones, [layer.linear.matmul for layer in group])
    assert len(graph.graph) == nodes + len(groups)
    assert_unchanged(before, graph, feeds, tmp_path)


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


def test_queries_and_keys_are_balanced_and_keys_centred(graph: ir.Model, feeds: ImageFeeds, tmp_path: Path) -> None:
    before = outputs(graph, feeds, tmp_path)
    tensors = attention_tensors(graph)
    assert tensors
    collected = statistics(graph, feeds, [name for names in tensors.values() for name in names])
    means = {name: collected[value].mean.astype(np.float32) for name, (_, _, value) in tensors.items()}
    scales = {name: AttentionScales(1.0, mean, np.ones_like(mean)) for name, mean in means.items()}
    plan_attention(graph, tensors, collected, {}, scales, scheme_of(QuantizeSettings(target="tensorrt")))
    assert_unchanged(before, graph, feeds, tmp_path)


def test_gains_multiply_the_values_and_nothing_else(graph: ir.Model, feeds: ImageFeeds, tmp_path: Path) -> None:
    before = outputs(graph, feeds, tmp_path)
    tensors = attention_tensors(graph)
    collected = statistics(graph, feeds, [name for names in tensors.values() for name in names])
    scales = {
        name: AttentionScales(1.0, collected[v].mean.astype(np.float32), 1 + collected[v].maximum)
        for name, (_, _, v) in tensors.items()
    }
    untouched = (np.ones(1, np.float32), np.zeros(1, np.float32))
    values = {value: untouched for _, _, value in tensors.values()}
    plans = plan_attention(graph, tensors, collected, values, scales, scheme_of(QuantizeSettings(target="tensorrt")))
    factors = apply_gains(graph, plans)
    assert len(factors) == len(plans) > 0
    assert np.abs(outputs(graph, feeds, tmp_path) - before).max() > 0.1 * np.abs(before).max()
    consumers = {
        layer.linear.block: layer for layer in choose_layers(graph, where="model") if layer.linear.role == "proj"
    }
    for plan in plans:
        consumer = consumers[int(plan.group.split(".")[0])]
        fold_into_consumers(graph.graph, [consumer], 1 / plan.gain, np.zeros_like(plan.gain))
    assert_unchanged(before, graph, feeds, tmp_path)


def test_values_that_were_not_centred_get_no_gain(graph: ir.Model, feeds: ImageFeeds) -> None:
    tensors = attention_tensors(graph)
    collected = statistics(graph, feeds, [name for names in tensors.values() for name in names])
    scales = {
        name: AttentionScales(1.0, collected[v].mean.astype(np.float32), 1 + collected[v].maximum)
        for name, (_, _, v) in tensors.items()
    }
    plans = plan_attention(graph, tensors, collected, {}, scales, scheme_of(QuantizeSettings(target="tensorrt")))
    assert all((plan.gain == 1).all() for plan in plans)


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


@pytest.mark.parametrize("target", ["tensorrt", "ort-x86"])
def test_everything_that_is_planned_together_changes_nothing(
    graph: ir.Model, feeds: ImageFeeds, tmp_path: Path, target: str
) -> None:
    before = outputs(graph, feeds, tmp_path)
    settings = QuantizeSettings.model_validate({"target": target})
    layers = choose_layers(graph, where="model")
    collected = statistics(graph, feeds, list(layers_by_input(layers)))
    plans = plan_tensors(graph, layers, collected, settings, scheme_of(settings), class_token=True)
    assert {plan.kind for plan in plans} >= {"norm", "value", "gelu"}
    assert_unchanged(before, graph, feeds, tmp_path)


def test_the_bias_makes_up_for_the_shift_that_a_float16_body_subtracts(
    graph: ir.Model, feeds: ImageFeeds, tmp_path: Path
) -> None:
    settings = QuantizeSettings(target="tensorrt")
    layers = choose_layers(graph, where="model")
    collected = statistics(graph, feeds, list(layers_by_input(layers)))
    plans = plan_tensors(graph, layers, collected, settings, scheme_of(settings), class_token=True)
    shifts = np.array([plan.choice.shift[0] for plan in plans if plan.kind == "gelu"])
    assert shifts.all()
    np.testing.assert_array_equal(shifts, shifts.astype(np.float16))
