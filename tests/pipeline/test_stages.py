"""The stages that run models, on a classifier with one layer: what each writes, and that it is what was computed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessor

from tests.support.linear_model import CLASSES, PREPROCESS, SIZE, save_image, write_bundle
from tests.support.linear_torch import load_linear
from vitexport.bundle.bundle import Bundle, Kind
from vitexport.bundle.layout import (
    DISAGREEMENTS,
    PREPROCESSING,
    REFERENCE,
    read_analysis,
    read_disagreements,
    read_labels,
    read_recording,
    read_replay_inputs,
    recording_name,
)
from vitexport.bundle.recording import Recording
from vitexport.errors import InferenceError, RuntimeBackendError
from vitexport.files import StageResult
from vitexport.host.sources import LoadedModel
from vitexport.inputs.images import list_images, load_image
from vitexport.inputs.labels.targets import Labels, Target
from vitexport.inputs.preprocess import preprocess
from vitexport.pipeline import stages
from vitexport.pipeline.stages import (
    VerificationImages,
    compare_preprocessing,
    keep_disagreements,
    measure_latency,
    record_reference,
    record_variant,
)
from vitexport.pipeline.step import Step
from vitexport.pipeline.workspace import Workspace
from vitexport.recipe.settings import BenchmarkSettings, ModelSettings, VerifySettings
from vitexport.runtimes.base import RuntimeOptions
from vitexport.runtimes.onnxruntime import OnnxRuntime
from vitexport.tensors import Array
from vitexport.verification.parity import compare

COUNT = 7
LABELS = Labels("labels.csv", (0, 1, 2, 3, 4, 5, 6))
VERIFY = VerifySettings(batch_size=4, replay_images=3)


@pytest.fixture
def images(tmp_path: Path) -> Iterator[VerificationImages]:
    folder = tmp_path / "images"
    for index in range(COUNT):
        save_image(folder / f"class{index % 2}" / f"{index}.png", index)
    with closing(VerificationImages(folder, list_images(folder))) as made:
        yield made


def bundle_of(tmp_path: Path, *, batch: int | str = "batch", variants: tuple[str, ...] = ("simplified",)) -> Bundle:
    return Bundle.open(write_bundle(tmp_path / "bundle", batch=batch, variants=variants))


def loaded(bundle: Bundle) -> LoadedModel:
    return load_linear(bundle.path(bundle.models[0]))


def keep(bundle: Bundle, name: str, kind: Kind, result: StageResult) -> Bundle:
    """Return the bundle with what a stage made."""
    work = Workspace(bundle.root, force=False, dry_run=False, on_event=lambda _: None)
    work.bundle = bundle
    work.ensure(Step(stage="test", output=name, kind=kind, run=lambda: result))
    return work.current()


def with_reference(
    bundle: Bundle,
    images: VerificationImages,
    settings: VerifySettings = VERIFY,
    labels: Labels | None = LABELS,
) -> Bundle:
    result = record_reference(loaded(bundle), images, settings, bundle.root, labels=labels)
    return keep(bundle, recording_name(REFERENCE), "recording", result)


def test_the_reference_holds_every_image_and_carries_some_spread_over_all(
    tmp_path: Path, images: VerificationImages
) -> None:
    bundle = bundle_of(tmp_path)
    kept = with_reference(bundle, images)
    recording = read_recording(kept, REFERENCE)
    assert recording.runtime == "pytorch"
    assert recording.images == images.names
    planes = np.stack([preprocess(load_image(path), PREPROCESS) for path in images.paths])
    expected = loaded(bundle).module(torch.from_numpy(planes)).detach().numpy()
    np.testing.assert_allclose(recording.outputs["logits"], expected, rtol=1e-5, atol=1e-5)
    inputs = read_replay_inputs(kept)
    assert inputs.images == tuple(images.names[row] for row in (0, 2, 4))
    assert inputs.targets == (0, 2, 4)
    np.testing.assert_array_equal(inputs.feed(bundle.model.inputs[0], PREPROCESS), planes[[0, 2, 4]])
    details = kept.artifact(recording_name(REFERENCE)).details
    assert (details["images"], tuple(details["targets"])) == (COUNT, LABELS.targets)
    assert details["labels"] == "labels.csv, matched by value"


@pytest.mark.parametrize("targets", [((0, 2), (), (1,), (0,), (), (2,), (1, 2)), (0.5, 1.0, 2.0, -1.0, 0.0, 3.5, 2.5)])
def test_several_labels_and_values_travel_as_they_are(
    targets: tuple[Target, ...], tmp_path: Path, images: VerificationImages
) -> None:
    kept = with_reference(bundle_of(tmp_path), images, labels=Labels("labels.json", targets))
    assert read_labels(Bundle.open(kept.root)) == (targets, "labels.json, matched by value")
    assert read_replay_inputs(kept).targets == (targets[0], targets[2], targets[4])


def test_no_more_images_travel_than_there_are_and_labels_may_be_missing(
    tmp_path: Path, images: VerificationImages
) -> None:
    kept = with_reference(bundle_of(tmp_path), images, VerifySettings(replay_images=99), labels=None)
    inputs = read_replay_inputs(kept)
    assert (inputs.images, inputs.targets) == (images.names, None)
    assert kept.artifact(recording_name(REFERENCE)).details["targets"] is None


@pytest.mark.parametrize("batch", ["batch", 3], ids=["dynamic", "fixed"])
def test_a_variant_with_pytorchs_weights_is_recorded_as_equal(
    batch: int | str, tmp_path: Path, images: VerificationImages
) -> None:
    bundle = with_reference(bundle_of(tmp_path, batch=batch), images)
    result = record_variant(bundle, bundle.artifact("simplified"), images, VERIFY)
    assert result.precision == "float32"
    report = compare(read_recording(bundle, REFERENCE), Recording.load(result.path), VERIFY.float_tolerance)
    assert report.passed, report.failures
    assert report.images == COUNT


def test_a_variant_with_other_weights_is_recorded_as_another(tmp_path: Path, images: VerificationImages) -> None:
    bundle = with_reference(bundle_of(tmp_path, variants=("simplified", "int8")), images)
    result = record_variant(bundle, bundle.artifact("int8"), images, VERIFY)
    report = compare(read_recording(bundle, REFERENCE), Recording.load(result.path), VERIFY.float_tolerance)
    assert not report.passed
    assert not any("other input tensors" in line for line in report.failures), "the inputs were the same"


@pytest.mark.parametrize(("batch", "sizes"), [("batch", [1, 2]), (3, [3])], ids=["dynamic", "fixed"])
def test_every_variant_is_timed_at_every_size_that_all_can_run(
    batch: int | str, sizes: list[int], tmp_path: Path, images: VerificationImages
) -> None:
    bundle = with_reference(bundle_of(tmp_path, batch=batch, variants=("simplified", "int8")), images)
    settings = BenchmarkSettings(batch=(1, 2), seconds=0.01, warmup=0, threads=1)
    result = measure_latency(bundle, loaded(bundle), settings)
    content = read_analysis(keep(bundle, "benchmark", "benchmark", result), "benchmark")
    assert content is not None
    assert list(content["variants"]) == [REFERENCE, "simplified", "int8"]
    for entries in content["variants"].values():
        assert [entry["batch"] for entry in entries] == sizes
        assert all(entry["runs"] > 0 and entry["p50_ms"] > 0 for entry in entries)
    runs = {tuple(entry["runs"] for entry in entries) for entries in content["variants"].values()}
    assert len(runs) == 1, "taking turns, all run as often"
    assert content["executed"] == {"simplified": {"float32": 1.0}, "int8": {"float32": 1.0}}
    assert content["machine"]["cores"]


@pytest.mark.parametrize("failing", ["open", "run"])
def test_every_opened_model_is_closed_when_a_measurement_fails(
    failing: str, tmp_path: Path, images: VerificationImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_reference(bundle_of(tmp_path, variants=("simplified", "int8")), images)
    opened: list[str] = []
    closed: list[str] = []

    class Broken(OnnxRuntime):
        @classmethod
        def open(cls, model: Path, options: RuntimeOptions) -> Broken:
            if failing == "open" and opened:
                raise RuntimeBackendError("the second model does not open", "")
            opened.append(model.stem)
            return super().open(model, options)

        def _execute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            raise InferenceError("the model does not run", "")

        def close(self) -> None:
            closed.append(self._model.stem)
            super().close()

    monkeypatch.setattr(stages, "open_runtime", lambda path, options: Broken.open(path, options))
    with pytest.raises(RuntimeBackendError):
        measure_latency(bundle, loaded(bundle), BenchmarkSettings(seconds=0.01, warmup=0))
    assert opened and closed == opened[::-1]


def _library(folder: Path, **settings: object) -> ModelSettings:
    """Write the image processor that a checkpoint of this model would have."""
    own = {"size": {"height": SIZE, "width": SIZE}, "resample": 2, **settings}
    means = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    ViTImageProcessor(**{**means, **own}).save_pretrained(folder)
    return ModelSettings(source=str(folder))


def test_preprocessing_like_the_librarys_passes_and_original_files_are_kept(
    tmp_path: Path, images: VerificationImages
) -> None:
    bundle = with_reference(bundle_of(tmp_path), images)
    settings = _library(tmp_path / "checkpoint")
    result = compare_preprocessing(loaded(bundle), settings, images, bundle)
    content = read_analysis(keep(bundle, PREPROCESSING, "analysis", result), PREPROCESSING)
    assert content is not None
    assert content["passed"] is True, content["finding"]
    assert "ViTImageProcessor" in content["library"]
    carried = read_replay_inputs(bundle).images
    assert [sample["image"] for sample in content["samples"]] == list(carried)
    files = dict(zip(images.names, images.paths, strict=True))
    for sample, kept in zip(content["samples"], result.companions, strict=True):
        assert kept.read_bytes() == files[sample["image"]].read_bytes()


def test_preprocessing_unlike_the_librarys_is_named_and_an_absent_one_is_no_pass(
    tmp_path: Path, images: VerificationImages
) -> None:
    bundle = with_reference(bundle_of(tmp_path), images)
    other = _library(tmp_path / "other", image_mean=[0.1, 0.1, 0.1])
    found = json.loads(compare_preprocessing(loaded(bundle), other, images, bundle).path.read_text())
    assert found["passed"] is False
    assert "(0.100, 0.100, 0.100)" in found["finding"]
    absent = ModelSettings(source=str(tmp_path / "images"))
    found = json.loads(compare_preprocessing(loaded(bundle), absent, images, bundle).path.read_text())
    assert found["passed"] is None


def test_images_that_the_last_variant_sees_otherwise_are_kept_worst_first(
    tmp_path: Path, images: VerificationImages
) -> None:
    bundle = with_reference(bundle_of(tmp_path, variants=("simplified", "int8")), images)
    for name in ("simplified", "int8"):
        result = record_variant(bundle, bundle.artifact(name), images, VERIFY)
        bundle = keep(bundle, recording_name(name), "recording", result)
    bundle = keep(bundle, DISAGREEMENTS, "analysis", keep_disagreements(bundle, images))
    found = read_disagreements(bundle)
    assert found is not None
    assert sorted(found.images) == sorted(images.names), "there are fewer than it keeps at most"
    classes = {
        name: read_recording(bundle, name).select(found.images).outputs["logits"].argmax(axis=1)
        for name in (REFERENCE, "int8")
    }
    same = (classes[REFERENCE] == classes["int8"]).tolist()
    assert same == sorted(same), "other classes come first"
    files = dict(zip(images.names, images.paths, strict=True))
    planes = np.stack([preprocess(load_image(files[name]), PREPROCESS) for name in found.images])
    np.testing.assert_array_equal(found.feed(bundle.model.inputs[0], PREPROCESS), planes)


def test_answers_that_cannot_be_compared_keep_no_image(tmp_path: Path, images: VerificationImages) -> None:
    bundle = with_reference(bundle_of(tmp_path), images)
    path = tmp_path / "bundle" / "recordings" / "simplified.npz"
    outputs = {"logits": np.full((COUNT, len(CLASSES)), np.nan, np.float32)}
    Recording("onnxruntime", images.names, images.names, outputs).save(path)
    bundle = keep(bundle, recording_name("simplified"), "recording", StageResult(path, "float32"))
    found = read_disagreements(keep(bundle, DISAGREEMENTS, "analysis", keep_disagreements(bundle, images)))
    assert found is not None
    assert found.images == ()
    assert found.pixels.shape == (0, SIZE, SIZE, 3)
