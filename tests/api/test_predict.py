"""predict_files: rows in memory, and the job that can be resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.linear_model import CLASSES, save_image, write_model
from vitexport.api.predict import predict_files
from vitexport.api.progress import StepEvent
from vitexport.bundle.bundle import Bundle
from vitexport.errors import RecipeError, VitexportError
from vitexport.predict.batch import Chunk, ChunkResult, Row
from vitexport.predict.job import JobResult, what_is_done
from vitexport.predict.journal import Journal, job_identity, journal_path
from vitexport.predict.predictor import Predictor
from vitexport.predict.settings import JobSettings


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images; the third is broken."""
    for index in range(5):
        save_image(tmp_path / "photos" / f"{index}.png", index)
    (tmp_path / "photos" / "2.png").write_bytes(b"hello")
    return tmp_path / "photos"


def test_rows_are_the_predictors_answers_in_the_order_of_the_sources(bundle_dir: Path, photos: Path) -> None:
    found = predict_files(Bundle.open(bundle_dir), photos, top=2, batch=2)
    assert (found.model, found.variant, len(found)) == ("linear", "simplified", 5)
    assert [Path(row.image).name for row in found] == [f"{index}.png" for index in range(5)]
    assert [row.image for row in found.failed] == [found[2].image]
    with Predictor.open(bundle_dir) as predictor:
        for row in found:
            if not row.error:
                expected = predictor.predict(row.image, top=2).predictions
                assert [entry.label for entry in row.predictions] == [entry.label for entry in expected]
                assert row.predictions[0].score == pytest.approx(expected[0].score, rel=1e-5)


def test_rows_show_themselves_as_tables_and_as_plain_values(bundle_dir: Path, photos: Path) -> None:
    found = predict_files(bundle_dir, [photos / "0.png", photos / "2.png"], top=1)
    classes, errors = found.tables()
    assert classes.columns == ("image", "label", "score") and len(classes.rows) == 1
    assert errors.rows == ((str(photos / "2.png"), found[1].error),)
    document = json.loads(json.dumps(found.to_dict()))
    assert document == found.to_dict()
    assert document["results"][1] == {
        "image": str(photos / "2.png"),
        "predictions": [],
        "features": [],
        "error": found[1].error,
    }


def test_features_are_rows_as_well(image_file: Path, tmp_path: Path) -> None:
    found = predict_files(write_model(tmp_path / "features.onnx", task="features"), image_file)
    assert len(found[0].features) == len(CLASSES) and not found[0].predictions
    assert f"{len(CLASSES)} numbers" in repr(found)


def test_a_job_writes_the_file_and_says_what_it_did(bundle_dir: Path, photos: Path, tmp_path: Path) -> None:
    done = predict_files(bundle_dir, str(photos), tmp_path / "results.jsonl")
    assert isinstance(done, JobResult)
    assert (done.images, done.failed, done.resumed) == (5, 1, 0)
    rows = [json.loads(line) for line in done.output.read_text().splitlines()]
    assert [row["label"] for row in rows] == [
        row.predictions[0].label if row.predictions else None for row in predict_files(bundle_dir, photos)
    ]
    counts = ["images", "failed", "resumed", "reasons", "seconds"]
    assert list(done.to_dict()) == ["output", "model", "variant", "sha256", "notes", *counts]
    assert "2.png" in done.reasons[0] and done.reasons[0] in repr(done)
    with pytest.raises(VitexportError, match="exists already"):
        predict_files(bundle_dir, photos, done.output)
    assert predict_files(bundle_dir, photos, done.output, overwrite=True).images == 5


def test_a_resumed_job_counts_what_was_there(bundle_dir: Path, photos: Path, tmp_path: Path) -> None:
    paths = sorted(photos.iterdir())
    with Predictor.open(bundle_dir) as predictor:
        named = what_is_done(JobSettings(bundle_dir, top=5, batch=2), predictor)
    work = (Chunk(0, tuple(paths[:2])), Chunk(1, tuple(paths[2:4])), Chunk(2, tuple(paths[4:])))
    out = tmp_path / "r.jsonl"
    with Journal(journal_path(out), job_identity(work, named)) as journal:
        journal.add(ChunkResult(0, tuple(Row(str(path), error="told before") for path in paths[:2])))
    events: list[StepEvent] = []
    done = predict_files(bundle_dir, photos, out, batch=2, progress=events.append)
    assert (done.images, done.resumed, done.failed) == (5, 2, 3)
    assert [event.fraction for event in events] == [0.4, 0.8, 1.0, None]


def test_a_job_is_not_resumed_with_another_scoring(bundle_dir: Path, photos: Path, tmp_path: Path) -> None:
    with Predictor.open(bundle_dir, scoring="sigmoid") as predictor:
        named = what_is_done(JobSettings(bundle_dir, top=5, batch=2), predictor)
    paths = sorted(photos.iterdir())
    work = (Chunk(0, tuple(paths[:2])), Chunk(1, tuple(paths[2:4])), Chunk(2, tuple(paths[4:])))
    out = tmp_path / "r.jsonl"
    with Journal(journal_path(out), job_identity(work, named)) as journal:
        journal.add(ChunkResult(0, tuple(Row(str(path), error="told before") for path in paths[:2])))
    with pytest.raises(VitexportError, match="journal of another job"):
        predict_files(bundle_dir, photos, out, batch=2)


@pytest.mark.parametrize("out", [None, "results.csv"])
def test_progress_counts_images_and_the_model_is_shown_first(
    out: str | None, bundle_dir: Path, photos: Path, tmp_path: Path
) -> None:
    seen: list[object] = []
    target = None if out is None else tmp_path / out
    options = {"batch": 2, "progress": seen.append, "on_open": lambda predictor: seen.append(predictor.name)}
    predict_files(bundle_dir, photos, target, **options)  # type: ignore[call-overload]
    name, *events = seen
    assert name == "linear"
    assert [event.fraction for event in events] == [0, 0.4, 0.8, 1, None]  # type: ignore[attr-defined]
    assert {(event.stage, event.status) for event in events[:-1]} == {("predict", "running")}  # type: ignore[attr-defined]
    assert events[1].message.startswith("2/5, 0:00:0")  # type: ignore[attr-defined]
    assert events[-1] == StepEvent("predict", "done", "5 images")


def test_what_belongs_to_a_job_is_refused_without_one(bundle_dir: Path, image_file: Path) -> None:
    with pytest.raises(RecipeError, match="Expected a results file"):
        predict_files(bundle_dir, image_file, engine="ray")
    with pytest.raises(RecipeError, match="Expected a results file"):
        predict_files(bundle_dir, image_file, overwrite=True)
    with pytest.raises(RecipeError, match="'local' or 'ray', found 'dask'"):
        predict_files(bundle_dir, image_file, "r.csv", engine="dask")  # type: ignore[call-overload]
    with pytest.raises(RecipeError, match="batch to be a number above zero, found 0"):
        predict_files(bundle_dir, image_file, batch=0)
