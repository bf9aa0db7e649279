"""Labels that fit the model, pixels that fit the library, and what the runtime really executes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import read_replay_inputs
from vitexport.bundle.recording import Recording
from vitexport.inputs.preprocess import PreprocessSpec, Resize, preprocess
from vitexport.inputs.preprocess_diff import compare_pixels
from vitexport.runtimes import open_runtime
from vitexport.runtimes.onnxruntime_profile import executed_layers, fraction_of_work
from vitexport.verification.checks import targets_check

SPEC = PreprocessSpec(
    image_size=(32, 32),
    resize=Resize(mode="shortest_edge", size=(36, 36)),
    crop=True,
    interpolation="bicubic",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
)


def recorded(classes: int = 10, images: int = 100, accuracy: float = 0.9) -> tuple[Recording, list[int]]:
    random = np.random.default_rng(1)
    truth = random.integers(1, classes - 1, images)
    logits = random.normal(size=(images, classes)).astype(np.float32)
    right = random.random(images) < accuracy
    logits[np.arange(images)[right], truth[right]] += 20
    names = tuple(str(index) for index in range(images))
    return Recording("pytorch", names, names, {"logits": logits}), [int(value) for value in truth]


def test_right_labels_pass_and_shifted_ones_are_named_in_both_directions() -> None:
    recording, truth = recorded()
    right = targets_check(recording, truth)
    assert right is not None
    assert right.passed is True
    high = targets_check(recording, [label + 1 for label in truth])
    low = targets_check(recording, [label - 1 for label in truth])
    assert high is not None and low is not None
    assert high.passed is False and "every label is one too high" in high.finding
    assert low.passed is False and "every label is one too low" in low.finding


def test_labels_outside_of_the_classes_fail_and_chance_is_not_called_a_pass() -> None:
    recording, truth = recorded()
    outside = targets_check(recording, [label + 50 for label in truth])
    assert outside is not None
    assert outside.passed is False
    random, labels = recorded(accuracy=0.0)
    chance = targets_check(random, labels)
    assert chance is not None
    assert chance.passed is None
    assert "no better than chance" in chance.finding
    few = Recording("pytorch", random.images[:5], random.images[:5], {"logits": random.outputs["logits"][:5]})
    undecided = targets_check(few, labels[:5])
    assert undecided is not None
    assert undecided.passed is None
    assert targets_check(recording, None) is None


NAMES = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")


def answers(truth: list[int], chosen: list[int], classes: int = 10) -> tuple[Recording, list[int]]:
    names = tuple(str(index) for index in range(len(truth)))
    return Recording("pytorch", names, names, {"logits": np.eye(classes, dtype=np.float32)[chosen]}), truth


def test_an_exchange_of_classes_is_told_from_a_bad_model_and_its_pairs_are_named() -> None:
    recording, truth = recorded(accuracy=0.95)
    order = [3, 8, 1, 0, 9, 2, 7, 5, 4, 6]
    found = targets_check(recording, [order[label] for label in truth], class_names=NAMES, matched="class folders")
    assert found is not None
    assert found.passed is False
    assert "classes are exchanged" in found.finding and "'ibis' is answered 'bee' on" in found.finding
    assert found.finding.endswith("in another order than the model's classes (labels: class folders)")


@pytest.mark.parametrize("classes", [2, 12])
def test_two_swapped_classes_are_no_shift_by_one(classes: int) -> None:
    truth = [row % classes for row in range(20 * classes)]
    swapped = [{0: 1, 1: 0}.get(label, label) for label in truth]
    found = targets_check(*answers(swapped, truth, classes))
    assert found is not None
    assert found.passed is False
    assert "100.0% if 2 classes are exchanged: class 0 is answered class 1 on 20 images" in found.finding
    assert "shifted" not in found.finding


def test_a_mistake_that_a_model_makes_in_one_direction_is_no_exchange() -> None:
    truth = [row % 10 for row in range(200)]
    found = targets_check(*answers(truth, [1 if label == 0 else label for label in truth]))
    assert found is not None
    assert found.passed is True


def test_one_answer_for_everything_is_chance_whatever_the_frequencies() -> None:
    frequent = targets_check(*answers([0] * 90 + [1] * 10, [0] * 100, 2))
    assert frequent is not None
    assert frequent.passed is None and "90.0% is expected" in frequent.finding


def test_a_few_right_numbers_among_many_wrong_ones_are_no_pass() -> None:
    """One folder per synset numbered by its place: the first of a thousand classes are right, far above chance."""
    truth = list(range(384))
    chosen = [label if label < 8 else (label * 2 + 3) % 1000 for label in truth]
    found = targets_check(*answers(truth, chosen, 1000))
    assert found is not None
    assert found.passed is None and "too little to say that the labels fit" in found.finding


@pytest.mark.parametrize(("images", "passed"), [(2, None), (5, True)])
def test_few_images_pass_only_when_chance_cannot_explain_them(images: int, passed: bool | None) -> None:
    truth = list(range(images))
    found = targets_check(*answers(truth, truth, 10))
    assert found is not None
    assert found.passed is passed


def test_random_labels_are_never_taken_for_an_exchange() -> None:
    random = np.random.default_rng(5)
    for _ in range(200):
        truth, chosen = random.integers(0, 10, (2, 60))
        found = targets_check(*answers(truth.tolist(), chosen.tolist()))
        assert found is not None
        assert found.passed is None


@pytest.mark.parametrize("targets", [[(0, 1), ()], [0.5, 2.0], None, [0]])
def test_labels_of_another_kind_are_not_judged_as_classes(targets: list[object] | None) -> None:
    recording, _ = answers([0, 1], [0, 1])
    assert targets_check(recording, targets) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"channel_order": "bgr"}, "the channels are swapped, BGR here and RGB there"),
        ({"interpolation": "nearest"}, "the interpolation is nearest here and bicubic there"),
        ({"mean": (0.5, 0.5, 0.5)}, "(0.400, 0.500, 0.600) and (0.200, 0.250, 0.300) there"),
        ({"std": (0.4, 0.4, 0.4)}, "(0.400, 0.500, 0.600) and (0.200, 0.250, 0.300) there"),
        ({"resize": Resize(size=(32, 32)), "crop": False}, "cropped there"),
    ],
    ids=["bgr", "nearest", "mean", "std", "crop"],
)
def test_a_difference_of_preprocessing_is_named(photo: Image.Image, change: dict[str, object], named: str) -> None:
    photos = [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    expected = [preprocess(image, SPEC) for image in photos]
    same = compare_pixels(photos, expected, SPEC)
    assert same.passed
    assert same.max_levels < 0.01
    found = compare_pixels(photos, expected, SPEC.model_copy(update=change))
    assert not found.passed
    assert named in found.finding


def test_one_level_of_rounding_is_no_difference_and_another_shape_is(photo: Image.Image) -> None:
    expected = preprocess(photo, SPEC)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, expected.shape).astype(np.float32)
    noisy = expected + noise / 255 / np.asarray(SPEC.std, dtype=np.float32)[:, None, None]
    assert compare_pixels([photo], [noisy], SPEC).passed
    assert not compare_pixels([photo], [expected[:, :30]], SPEC).passed
    assert not compare_pixels([], [], SPEC).passed


@pytest.mark.parametrize(("variant", "low", "high"), [("simplified", 0.0, 0.0), ("int8", 0.8, 0.999)])
def test_what_onnxruntime_executes_is_read_from_its_profile(
    coloured_bundle: Path, variant: str, low: float, high: float
) -> None:
    bundle = Bundle.open(coloured_bundle)
    path = bundle.path(bundle.artifact(variant))
    with open_runtime(path) as runtime:
        feed = read_replay_inputs(bundle).feed(runtime.inputs[0], bundle.preprocess, slice(0, 2))
        layers = executed_layers(path, {runtime.inputs[0].name: feed})
    assert len(layers) == 18  # patch embedding, four layers in each of four blocks, head
    assert low <= fraction_of_work(layers, "int8") <= high
    fc1 = next(layer for layer in layers if "layers.0.mlp.fc1" in layer.name)
    images, tokens, width, inner = 2, (32 // 4) ** 2 + 1, 96, 384
    assert fc1.work == images * tokens * width * inner
