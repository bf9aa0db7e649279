"""Whole runs of heads that do not choose one class: labels from a table, figures, gates, verify and evaluate."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

import vitexport as vx
from tests.support.checkpoints import save_vit
from tests.support.linear_model import save_image
from vitexport.verification.scores import LabelScores, ValueScores

NAMES = {0: "cat", 1: "dog", 2: "car"}
IMAGES = 12


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for index in range(IMAGES):
        save_image(tmp_path / "val" / f"{index}.png", index, height=32, width=32)
    for index in range(64):
        save_image(tmp_path / "train" / f"{index}.png", 100 + index, height=32, width=32)
    return tmp_path


def answers(model: Path, images: Path) -> dict[str, dict[str, float]]:
    """What the source library makes of every image."""
    ask = pipeline("image-classification", model=str(model), device="cpu")
    paths = sorted(images.iterdir())
    return {path.name: {entry["label"]: entry["score"] for entry in ask(str(path), top_k=None)} for path in paths}


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(place: Path, labels: Path, **gates: float) -> vx.FinishedRun:
    return vx.run(
        source=place / "model",
        out=place / "out",
        images=place / "val",
        calibration=place / "train",
        labels=labels,
        settings={"benchmark.seconds": 0.05, "quantize.preset": "fast", **{f"gates.{k}": v for k, v in gates.items()}},
    )


def test_several_labels_at_once_are_scored_by_map_and_f1(place: Path) -> None:
    save_vit(place / "model", id2label=NAMES, problem_type="multi_label_classification")
    said = answers(place / "model", place / "val")
    # What the model finds, apart from one label of each of the first three images.
    truth = {name: {label for label, score in scores.items() if score >= 0.5} for name, scores in said.items()}
    for name in sorted(truth)[:3]:
        truth[name] ^= {"dog"}
    rows: list[dict[str, object]] = [{"file": name, "labels": ";".join(sorted(there))} for name, there in truth.items()]
    done = run(place, write_table(place / "labels.csv", rows), min_agreement=0.8, max_map_drop=20)
    assert done.verification is not None and done.passed, done.verification
    scores = done.verification.variants[0].accuracy
    assert isinstance(scores, LabelScores)
    assert scores.exact == pytest.approx((IMAGES - 3) / IMAGES)
    hits = sum(len(truth[name] & {label for label, score in said[name].items() if score >= 0.5}) for name in truth)
    wrong = sum(len(truth[name] ^ {label for label, score in said[name].items() if score >= 0.5}) for name in truth)
    assert scores.micro_f1 == pytest.approx(2 * hits / (2 * hits + wrong))
    assert {gate.gate for gate in done.verification.gates} == {"min_agreement", "max_map_drop"}
    assert "labels" in json.loads((place / "out" / "report.json").read_text())["headline"]
    verified = vx.verify(place / "out")
    assert verified.passed, verified.failures()
    assert verified.variants[0].accuracy == scores
    evaluated = vx.evaluate(place / "out", place / "val", labels=place / "labels.csv")
    assert isinstance(evaluated.models[0].accuracy, LabelScores)
    assert evaluated.models[0].accuracy.exact == pytest.approx(scores.exact)
    assert "mAP %" in str(evaluated)


def test_a_regression_is_scored_by_its_error_and_correlation(place: Path) -> None:
    save_vit(place / "model", num_labels=1, problem_type="regression")
    said = answers(place / "model", place / "val")
    rows: list[dict[str, object]] = [{"file": name, "label": scores["LABEL_0"] + 0.5} for name, scores in said.items()]
    done = run(place, write_table(place / "labels.csv", rows), min_correlation=0.9, max_mae=1)
    assert done.verification is not None and done.passed, done.verification
    scores = done.verification.variants[0].accuracy
    assert isinstance(scores, ValueScores)
    assert (scores.mean_abs, scores.correlation) == (pytest.approx(0.5, abs=1e-4), pytest.approx(1, abs=1e-6))
    last = done.verification.variants[-1].parity
    assert last is not None and last.main is not None
    assert last.main.agreement is None and last.main.min_cosine is None
    assert last.main.mean_abs > 0
    assert np.isfinite(last.main.correlation or np.nan)
    verified = vx.verify(place / "out")
    assert verified.passed, verified.failures()
    evaluated = vx.evaluate(place / "out", place / "val", labels=place / "labels.csv")
    found = evaluated.models[0].accuracy
    assert isinstance(found, ValueScores)
    assert found.mean_abs == pytest.approx(scores.mean_abs, abs=1e-4)
