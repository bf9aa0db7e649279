"""Fault injection: every fault is caught by the right variant or check, and named in the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.support.paths import ROOT
from tests.support.planted_faults import FAULTS, perturb_one_weight, plant, scale_by_four, swap_two_channels
from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import read_recipe
from vitexport.host.diagnose.bundle import bisect_variant, write_errors
from vitexport.host.preprocess_parity import compare_with_library
from vitexport.host.sources import load_model
from vitexport.recipe.settings import ModelSettings, Recipe
from vitexport.report import write_report
from vitexport.verification.judge import judge
from vitexport.verification.replay import replay
from vitexport.verification.result import VerificationResult

LAYER = "vit.layers.2.mlp.fc2"


@pytest.fixture
def copy(coloured_bundle: Path, tmp_path: Path) -> Path:
    """A sound bundle that a test may damage."""
    return Path(shutil.copytree(coloured_bundle, tmp_path / "bundle"))


@dataclass(frozen=True)
class Caught:
    """What replaying a faulty bundle says."""

    verification: VerificationResult
    html: str
    markdown: str

    def variants(self) -> list[str]:
        return [variant.name for variant in self.verification.variants if not variant.passed]


def examine(root: Path) -> Caught:
    bundle = Bundle.open(root, check_files=False)
    recipe = read_recipe(bundle)
    verification = replay(bundle, recipe)
    write_report(bundle, verification, recipe)
    return Caught(verification, (root / "report.html").read_text(), (root / "report.md").read_text())


def change_preprocessing(root: Path, **settings: object) -> None:
    path = root / "bundle.json"
    content = json.loads(path.read_text())
    content["preprocess"].update(settings)
    path.write_text(json.dumps(content))


def edit(root: Path, variant: str, change: Callable[[onnx.ModelProto], None]) -> None:
    path = root / "models" / f"{variant}.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def test_a_sound_bundle_passes_with_every_check_made(copy: Path) -> None:
    caught = examine(copy)
    assert caught.verification.passed, caught.verification.failures()
    assert {check.passed for check in caught.verification.checks} == {True}
    assert len(caught.verification.checks) == 4
    assert "Accepted" in caught.html


@pytest.mark.parametrize("variant", ["simplified", "int8"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_faulty_layer_fails_its_variant_only_and_bisect_names_it(copy: Path, variant: str, fault: Any) -> None:
    model = copy / "models" / f"{variant}.onnx"
    plant(model, model, LAYER, fault)
    # As the report stage of a run does; the file is known to the bundle already.
    write_errors(Bundle.open(copy, check_files=False), copy / "analysis" / "errors.json", images=4)
    caught = examine(copy)
    assert caught.variants() == [variant]
    assert not caught.verification.passed
    assert f"{variant}: output" in caught.html
    assert "rejected" in caught.markdown
    assert f"{variant}: The error enters at {LAYER}:" in caught.markdown
    assert f"The error enters at {LAYER}:" in caught.html
    found = bisect_variant(Bundle.open(copy, check_files=False), variant, images=4)
    assert found.finding == "single"
    assert found.culprits[0].layer == LAYER
    assert LAYER in found.describe()


def test_wrong_mean_and_std_are_other_inputs_on_every_variant(copy: Path) -> None:
    change_preprocessing(copy, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    caught = examine(copy)
    assert caught.variants() == ["onnx", "simplified", "int8"]
    assert "the preprocessing differs" in caught.html
    assert "mean is [0.485, 0.456, 0.406] in the bundle and [0.2, 0.2, 0.2] in onnx" in caught.markdown


def test_bgr_for_rgb_is_found_from_the_image_files_and_named(copy: Path) -> None:
    change_preprocessing(copy, channel_order="bgr")
    caught = examine(copy)
    assert not caught.verification.passed
    assert "the channels are swapped, BGR here and RGB there" in caught.markdown


def test_labels_exchanged_in_the_bundle_are_not_those_of_the_model_files(copy: Path) -> None:
    path = copy / "bundle.json"
    content = json.loads(path.read_text())
    content["class_names"] = content["class_names"][1:] + content["class_names"][:1]
    path.write_text(json.dumps(content))
    caught = examine(copy)
    assert not caught.verification.passed
    assert "the class names of the bundle are not those in onnx" in caught.markdown


def test_another_interpolation_is_found_from_the_image_files_and_named(copy: Path) -> None:
    change_preprocessing(copy, interpolation="nearest")
    caught = examine(copy)
    assert not caught.verification.passed
    assert "the interpolation is nearest here and bilinear there" in caught.markdown


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"channel_order": "bgr"}, "the channels are swapped"),
        ({"interpolation": "nearest"}, "the interpolation is nearest here and bilinear there"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "(0.200, 0.200, 0.200) and (0.305, 0.305, 0.305) there"),
    ],
    ids=["bgr", "interpolation", "mean and std"],
)
def test_preprocessing_that_differs_from_the_library_is_named_when_a_model_is_loaded(
    coloured_recipe: Recipe, settings: dict[str, Any], named: str
) -> None:
    source = ModelSettings(source=str(ROOT / "recipes" / "quickstart" / "model"))
    loaded = load_model(source)
    paths = sorted(coloured_recipe.data.verification.images.iterdir())[:4]
    assert compare_with_library(loaded, source, paths)["passed"] is True
    wrong = replace(
        loaded, metadata=replace(loaded.metadata, preprocess=loaded.metadata.preprocess.model_copy(update=settings))
    )
    found = compare_with_library(wrong, source, paths)
    assert found["passed"] is False
    assert named in found["finding"]


def test_a_disagreement_with_the_library_fails_the_run(copy: Path) -> None:
    path = copy / "analysis" / "preprocessing.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "passed": False, "finding": "the channels are swapped"}))
    bundle = Bundle.open(copy, check_files=False)
    verification = judge(bundle, read_recipe(bundle))
    assert not verification.passed
    assert any("the channels are swapped" in line for line in verification.failures())


def test_a_renamed_output_is_missing_and_its_new_name_is_told(copy: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["scores" if name == "logits" else name for name in node.output]
        model.graph.output[0].name = "scores"

    edit(copy, "simplified", rename)
    caught = examine(copy)
    assert caught.variants() == ["simplified"]
    assert "output 'logits' is missing; found scores instead" in caught.markdown


def test_nan_fails_its_variant_and_says_on_how_many_images(copy: Path) -> None:
    def poison(model: onnx.ModelProto) -> None:
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.bias")
        values = numpy_helper.to_array(bias).copy()
        values[0] = np.nan
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))

    edit(copy, "int8", poison)
    caught = examine(copy)
    assert caught.variants() == ["int8"]
    assert "holds NaN or infinity on 64 of 64 images" in caught.markdown


@pytest.mark.parametrize(
    ("shift", "finding"),
    [
        (lambda label: label + 1, "labels lie outside the model's 10 classes"),
        (lambda label: min(label + 1, 9), "if every label is one too high: the labels are shifted by one"),
        (lambda label: max(label - 1, 0), "if every label is one too low: the labels are shifted by one"),
    ],
    ids=["beyond the last class", "one too high", "one too low"],
)
def test_labels_shifted_by_one_are_told_from_a_bad_model(copy: Path, shift: Callable[[int], int], finding: str) -> None:
    path = copy / "bundle.json"
    content = json.loads(path.read_text())
    for artifact in content["artifacts"]:
        if artifact["name"] == "recording/pytorch":
            targets = artifact["details"]["targets"]
            assert {0, 9} <= set(targets)
            artifact["details"]["targets"] = [shift(label) for label in targets]
    path.write_text(json.dumps(content))
    bundle = Bundle.open(copy)
    recipe = read_recipe(bundle)
    verification = judge(bundle, recipe)
    assert [
        variant.name for variant in verification.variants if not variant.passed
    ] == []  # the variants are right: it is the labels
    assert not verification.passed
    write_report(bundle, verification, recipe)
    report = (copy / "report.md").read_text()
    assert finding in report


def test_an_fp16_overflow_is_found_at_the_layer_that_overflows(copy: Path) -> None:
    # A model that computes one layer in float16 at a hundred thousand times its size: exact, if float16 could hold it.
    half = onnx.load(copy / "models" / "simplified.onnx")
    layer, factor = "vit.layers.1.mlp.fc1", np.float32(1e5)
    for tensor in half.graph.initializer:
        if tensor.name in (f"{layer}.weight", f"{layer}.bias"):
            grown = numpy_helper.to_array(tensor) * factor
            tensor.CopyFrom(numpy_helper.from_array(grown, tensor.name))
    half.graph.initializer.append(numpy_helper.from_array(np.float32(1 / factor), "shrink"))
    add = next(node for node in half.graph.node if node.name == f"{layer}/Add")
    at = list(half.graph.node).index(add)
    add.output[0] = "huge"
    make = onnx.helper.make_node
    steps = [
        make("Cast", ["huge"], ["huge_half"], name="to_half", to=onnx.TensorProto.FLOAT16),
        make("Cast", ["huge_half"], ["huge_again"], name="to_float", to=onnx.TensorProto.FLOAT),
        make("Mul", ["huge_again", "shrink"], [f"{layer}/Add"], name="back"),
    ]
    for offset, node in enumerate(steps, start=1):
        half.graph.node.insert(at + offset, node)
    onnx.save(half, copy / "models" / "int8.onnx")
    caught = examine(copy)
    assert caught.variants() == ["int8"]
    assert "holds NaN or infinity" in caught.html
    write_errors(Bundle.open(copy, check_files=False), copy / "analysis" / "errors.json", images=2)
    assert "is the first to overflow" in examine(copy).markdown
    found = bisect_variant(Bundle.open(copy, check_files=False), "int8", images=2)
    assert found.finding == "overflow"
    assert found.culprits[0].layer.startswith("vit.layers.1.mlp")
    assert "overflow" in found.describe()


def test_the_three_kinds_of_planted_fault_really_differ() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    results = [fault("weight", weight.copy()) for fault in (scale_by_four, swap_two_channels, perturb_one_weight)]
    assert not any(np.array_equal(result, weight) for result in results)
    assert not np.array_equal(results[0], results[1])
