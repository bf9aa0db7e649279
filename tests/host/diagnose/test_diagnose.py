"""Bisect and diagnose on the quickstart's model, and bisect on every layer of DeiT-Tiny."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from tests.support.paths import CALIBRATION, ROOT
from tests.support.planted_faults import FAULTS, plant, weighted_layers
from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import read_replay_inputs
from vitexport.cli import main
from vitexport.errors import BundleError
from vitexport.files import StageResult
from vitexport.host.diagnose import QuantizedRange, advise, bisect, measure_anatomy, measure_ranges, recipe_of
from vitexport.host.diagnose.bundle import bisect_variant
from vitexport.host.diagnose.rows import first_rows
from vitexport.host.export import export_onnx
from vitexport.host.quantize import quantize_onnx
from vitexport.host.simplify import simplify_onnx
from vitexport.host.sources import load_model
from vitexport.inputs.images import batches, list_images
from vitexport.recipe.settings import ExportSettings, ModelSettings, QuantizeSettings, SimplifySettings
from vitexport.tensors import Array


@pytest.fixture(scope="module")
def bundle(coloured_bundle: Path) -> Bundle:
    return Bundle.open(coloured_bundle)


@pytest.fixture(scope="module")
def feeds(bundle: Bundle) -> list[Array]:
    from vitexport.inputs.preprocess import normalize

    return [normalize(row, bundle.preprocess)[None] for row in read_replay_inputs(bundle).pixels[:4]]


def test_a_model_against_itself_is_exact(bundle: Bundle, feeds: list[Array]) -> None:
    model = bundle.path(bundle.artifact("simplified"))
    report = bisect(model, model, [(feed, feed) for feed in feeds])
    assert report.finding == "exact"
    assert report.culprits == ()
    assert {layer.local for layer in report.layers} == {0.0}


def test_a_graph_that_computes_fewer_tokens_is_compared_on_those(bundle: Bundle) -> None:
    report = bisect_variant(bundle, "simplified", images=2)
    assert report.finding == "exact", report.describe()
    # Of the last block the simplified graph computes the class token alone.
    assert {"vit.layers.3.mlp.fc2", "vit.layers.3.attention.o_proj"} <= {layer.layer for layer in report.layers}


def test_only_the_first_tokens_may_be_missing() -> None:
    shapes = {"same": (1, 5, 8), "first": (1, 2, 8)}
    values = {name: np.arange(40, dtype=np.float32).reshape(1, 5, 8) for name in ("same", "first", "other")}
    found = first_rows(values, shapes)
    assert {name: value.shape for name, value in found.items()} == {
        "same": (1, 5, 8),
        "first": (1, 2, 8),
        "other": (1, 5, 8),
    }
    np.testing.assert_array_equal(found["first"], values["first"][:, :2])


def test_sound_int8_is_spread_over_all_quantized_layers(bundle: Bundle) -> None:
    report = bisect_variant(bundle, "int8")
    assert report.finding == "spread"
    roles = {layer.role for layer in report.layers if layer.local > 1e-3}
    assert roles <= {"qkv", "proj", "fc1", "fc2"}  # nothing else is quantized, so nothing else may err
    assert len(report.blocks) == 4
    assert all(block.accumulated > 0 for block in report.blocks)
    drift = [block.accumulated for block in report.blocks]
    assert drift[2] > drift[0]  # the last block holds the class token alone: not the same measure


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_every_layer_of_the_small_model_is_found_when_it_is_at_fault(
    every: int, bundle: Bundle, feeds: list[Array], tmp_path: Path
) -> None:
    exact, int8 = (bundle.path(bundle.artifact(name)) for name in ("simplified", "int8"))
    found: dict[str, str] = {}
    layers = weighted_layers(int8)
    assert len(layers) >= 25
    layers = layers[::every]
    for index, layer in enumerate(layers):
        faulty = tmp_path / "faulty.onnx"
        plant(int8, faulty, layer, FAULTS[index % len(FAULTS)])
        report = bisect(exact, faulty, [(feed, feed) for feed in feeds[:2]])
        found[layer] = report.culprits[0].layer if report.culprits else report.finding
    missed = {layer: blamed for layer, blamed in found.items() if layer != blamed}
    assert len(missed) <= len(layers) // 10, missed


@pytest.fixture(scope="module")
def rotated(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    """The int8 variant again, the input of every fc2 rotated that is quantized."""
    settings = QuantizeSettings(target="ort-x86", preset="fast", rotate="16")
    out = tmp_path_factory.mktemp("rotated") / "rotated.onnx"
    return quantize_onnx(bundle.path(bundle.artifact("simplified")), list_images(CALIBRATION), settings, out)


def test_faults_in_rotated_layers_and_in_islands_are_found_where_they_are(
    rotated: StageResult, bundle: Bundle, feeds: list[Array], tmp_path: Path
) -> None:
    exact, pairs = bundle.path(bundle.artifact("simplified")), [(feed, feed) for feed in feeds]
    sound = bisect(exact, rotated.path, pairs)
    assert sound.finding == "spread", sound.describe()
    islands = rotated.details["kept_float"]
    assert {layer.local for layer in sound.layers if layer.layer in islands} == {0.0}
    fc2 = [layer.layer for layer in sound.layers if layer.role == "fc2" and layer.layer not in islands]
    assert {entry.tensor.rpartition(".")[2] for entry in _inputs_of_fc2(rotated, feeds)} == {"rotated"}
    for layer in (fc2[0], fc2[-1], *islands):
        for fault in FAULTS:
            plant(rotated.path, tmp_path / "faulty.onnx", layer, fault)
            found = bisect(exact, tmp_path / "faulty.onnx", pairs[:2])
            assert [one.layer for one in found.culprits[:1]] == [layer], (fault.__name__, found.describe())


def _inputs_of_fc2(model: StageResult, feeds: list[Array]) -> list[QuantizedRange]:
    return [entry for entry in measure_ranges(model.path, feeds[:1]) if "activation_fn" in entry.layer]


def test_wrong_questions_get_an_answer(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="first variant"):
        bisect_variant(bundle, "onnx")
    with pytest.raises(BundleError, match="int16"):
        bisect_variant(bundle, "int16")
    with pytest.raises(BundleError, match="no variant of"):
        bisect_variant(bundle, "recording/int8", against="simplified")


def test_ranges_of_a_quantized_model_fit_its_grid_and_a_float_model_has_none(
    bundle: Bundle, feeds: list[Array]
) -> None:
    int8 = bundle.artifact("int8")
    ranges = measure_ranges(bundle.path(int8), feeds)
    assert 8 < len(ranges) == len(int8.details["quantized"])  # each of these layers has an input of its own
    assert all(entry.low < entry.high and entry.min < entry.max for entry in ranges)
    assert max(entry.clipped for entry in ranges) < 0.05
    assert measure_ranges(bundle.path(bundle.artifact("simplified")), feeds) == ()


def test_anatomy_agrees_with_what_pytorch_computes(bundle: Bundle, feeds: list[Array], coloured_recipe: object) -> None:
    import torch

    root = ROOT
    loaded = load_model(ModelSettings(source=str(root / "recipes" / "quickstart" / "model")))
    seen: list[Array] = []
    norm = dict(loaded.module.named_modules())["model.vit.layers.2.layernorm_after"]
    norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output.numpy()))
    with torch.no_grad():
        for feed in feeds:
            loaded.module(torch.from_numpy(feed))
    anatomy = measure_anatomy(bundle.path(bundle.artifact("simplified")), feeds)
    facts = next(entry for entry in anatomy.tensors if entry.layer == "vit.layers.2.layernorm_after")
    values = np.concatenate(seen)
    np.testing.assert_allclose([facts.low, facts.high], [values.min(), values.max()], rtol=1e-4)
    np.testing.assert_allclose(facts.rms, np.sqrt((values**2).mean()), rtol=1e-4)
    assert {(shape.heads * shape.head_size) for shape in anatomy.attentions} == {values.shape[-1]}


def test_advice_warns_of_fp16_overflow_and_outlier_channels_and_gives_settings_that_parse(
    bundle: Bundle, feeds: list[Array], tmp_path: Path
) -> None:
    source = bundle.path(bundle.artifact("simplified"))
    sound = advise(measure_anatomy(source, feeds))
    assert not [entry for entry in sound if entry.topic == "fp16" and entry.level != "ok"]
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.name == "vit.layers.1.layernorm_before.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[5] *= 1e6
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "hard.onnx")
    hard = {entry.topic: entry for entry in advise(measure_anatomy(tmp_path / "hard.onnx", feeds))}
    assert hard["fp16"].level == "warning"
    assert "infinite" in hard["fp16"].why
    assert hard["LayerNorm outliers"].level == "warning"
    assert "vit.layers.1.layernorm_before (channel 5" in hard["LayerNorm outliers"].finding
    import yaml

    settings = yaml.safe_load(recipe_of(tuple(hard.values())))
    assert QuantizeSettings.model_validate(settings["quantize"]).precision == "bf16"
    assert settings["gates"]["on_failure"] == "fallback"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("diagnose", "{bundle}/models/int8.onnx", "--images", "calib/holdout"), "Expected a float model, found"),
        (
            ("diagnose", "{bundle}/report.html", "--images", "calib/holdout"),
            "Expected an ONNX model or a bundle, found",
        ),
        (("diagnose", "{bundle}/absent.onnx", "--images", "calib/holdout"), "found nothing at"),
        (("diagnose", "{bundle}/models/simplified.onnx"), "Expected images to run the model on"),
        (("bisect", "{bundle}", "--variant", "fp16"), "'fp16' is no variant of"),
        (("bisect", "{bundle}", "--variant", "int8", "--against", "recording/int8"), "it has onnx, simplified, int8"),
        (("bisect", "{bundle}/models/int8.onnx", "--variant", "int8"), "Expected a bundle directory at"),
    ],
)
def test_wrong_input_is_an_error_in_words(words: tuple[str, ...], message: str, coloured_bundle: Path) -> None:
    done = CliRunner().invoke(main, [word.format(bundle=coloured_bundle) for word in words])
    assert done.exit_code == 1, done.output
    assert message in " ".join(done.stderr.split())


def test_the_commands_print_json_and_nothing_else(coloured_bundle: Path) -> None:
    runner = CliRunner()
    found = runner.invoke(main, ["bisect", str(coloured_bundle), "--variant", "int8", "--images", "1", "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["finding"] == "spread"
    advice = runner.invoke(main, ["diagnose", str(coloured_bundle), "--limit", "1", "--json"])
    assert advice.exit_code == 0, advice.output
    assert {entry["topic"] for entry in json.loads(advice.stdout)["advice"]} >= {"fp16", "attention fusion"}
    scores = runner.invoke(
        main, ["evaluate", str(coloured_bundle), "--images", "calib/holdout", "--limit", "40", "--json"]
    )
    assert scores.exit_code == 0, scores.output
    assert [row["model"] for row in json.loads(scores.stdout)["results"]] == ["onnx", "simplified", "int8"]


@dataclass(frozen=True)
class DeitTiny:
    """The float and the int8 variant of DeiT-Tiny, and two photographs for both."""

    exact: Path
    int8: Path
    pairs: list[tuple[Array, Array]]


@pytest.fixture(scope="module")
def deit_tiny(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> DeitTiny:
    folder = tmp_path_factory.mktemp("deit")
    images = list_images(shared / "data" / "imagenet-1k-sample" / "calib")
    loaded = load_model(ModelSettings(source=str(shared / "models" / "deit-tiny-hf")))
    exported, exact, int8 = (folder / f"{name}.onnx" for name in ("exported", "exact", "int8"))
    export_onnx(loaded, ExportSettings(), exported)
    simplify_onnx(exported, SimplifySettings(), exact)
    quantize_onnx(exact, images[:64], QuantizeSettings(preset="fast"), int8)
    paths = list_images(shared / "data" / "imagenet-1k-sample" / "dev", limit=2)
    feeds = batches(paths, loaded.metadata.preprocess, loaded.metadata.model.inputs[0], 1)
    return DeitTiny(exact, int8, [(feed, feed) for feed in feeds])


_PARTS = 3
"""A fault in each of some 75 layers takes minutes: the layers are dealt out to this many tests."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(_PARTS))
@pytest.mark.parametrize("variant", ["int8", "float32"])
def test_nine_of_ten_faults_in_deit_tiny_are_found_in_the_layer_they_are_in(
    variant: str, part: int, deit_tiny: DeitTiny, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    source = deit_tiny.int8 if variant == "int8" else deit_tiny.exact
    layers = weighted_layers(source)
    assert len(layers) >= 75
    outcomes: list[tuple[str, str, str]] = []
    for index, layer in enumerate(layers):
        if index % _PARTS != part:
            continue
        # Every kind of layer meets every kind of fault, since blocks have six layers with weights and there are three
        # faults; the offset keeps one kind from meeting the same one in every block.
        fault = FAULTS[(index + index // 6 + (variant == "int8")) % len(FAULTS)]
        faulty = tmp_path / "faulty.onnx"
        plant(source, faulty, layer, fault)
        report = bisect(deit_tiny.exact, faulty, deit_tiny.pairs)
        outcomes.append((layer, fault.__name__, report.culprits[0].layer if report.culprits else report.finding))
    missed = [outcome for outcome in outcomes if outcome[0] != outcome[2]]
    record_property("found", f"{len(outcomes) - len(missed)} of {len(outcomes)}")
    print(f"{variant}, part {part}: {len(outcomes) - len(missed)} of {len(outcomes)} found; missed: {missed}")
    assert len(outcomes) >= 25
    assert len(missed) <= len(outcomes) // 10, missed
