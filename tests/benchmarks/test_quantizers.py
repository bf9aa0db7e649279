"""The quantizer comparison: rows that are skipped by name, figures that join old ones, and the table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import quantizers
from benchmarks.quantizers import measure_rows
from benchmarks.suites.quantized_models import score
from benchmarks.suites.quantizer_bench import Bench
from benchmarks.suites.quantizer_rows import BASELINE, COLUMNS, MODELS, ROWS, Row, merge, rows_of
from benchmarks.suites.quantizer_tables import best_per_model, figures_of, tools
from benchmarks.suites.tables import markdown_table, text_table
from tests.support.paths import ROOT
from vitexport.inputs.images import list_images


def _rows(*names: str) -> list[Row]:
    return [next(row for row in ROWS if row.name == name) for name in names]


def test_absent_peers_are_skipped_by_name_and_the_others_measured(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITEXPORT_PEERS", str(tmp_path / "none"))
    held_out = list_images(ROOT / "calib" / "holdout", limit=6)
    bench = Bench(
        small_model, list_images(ROOT / "calib" / "calibration", limit=4), held_out, (0,) * 6, tmp_path / "work"
    )
    chosen = _rows(BASELINE, "nncf-mixed")
    found = measure_rows(bench, chosen, ("quantize", "accuracy", "latency"), rounds=1, seconds=0.01)
    assert found["nncf-mixed"] == {"note": "nncf not installed (`make peers`)"}
    ours = found[BASELINE]
    # Four linear layers in each of the quickstart's four blocks.
    assert ours["8-bit: weighted, attention, other"].startswith("16, 0,")
    assert 50 < ours["int8 MACs %"] < 100  # patch embedding and head stay float
    assert ours["SQNR dB"] > 10
    assert 0 <= ours["agreement %"] <= 100
    assert ours["latency / float32"] > 0
    assert ours["time / MinMax"] == 1.0
    assert ours["version"].startswith("onnxruntime ")


def test_features_are_judged_by_their_sqnr_alone() -> None:
    reference = np.ones((2, 5, 4), dtype=np.float32)
    found = score(reference, 1.1 * reference, None)
    assert found.sqnr_db == pytest.approx(20, abs=1e-4)
    assert (found.agreement, found.top1_change) == (None, None)
    assert score(reference[:, 0], reference[:, 0], None).agreement is None, "pooled features have the shape of logits"


def test_new_figures_replace_only_the_row_of_the_model_that_was_measured() -> None:
    kept = [
        {"model": "deit-tiny", "name": "nncf-mixed", "tool and setting": "old title", "SQNR dB": 20.3, "seconds": 9.0},
        {"model": "deit-tiny", "name": "vitexport", "SQNR dB": 23.0},
        {"model": "deit-tiny", "name": "a row that was removed", "SQNR dB": 1.0},
        {"model": "a model that was removed", "name": "vitexport", "SQNR dB": 1.0},
    ]
    rows = merge(kept, {("deit-tiny", "nncf-mixed"): {"seconds": 8.0}, ("augreg-tiny", "nncf-mixed"): {"seconds": 7.0}})
    found = {(row["model"], row["name"]): row for row in rows}
    assert list(found) == [("deit-tiny", "vitexport"), ("deit-tiny", "nncf-mixed"), ("augreg-tiny", "nncf-mixed")]
    mixed = found["deit-tiny", "nncf-mixed"]
    assert (mixed["SQNR dB"], mixed["seconds"]) == (20.3, 8.0)
    assert mixed["tool and setting"] == "NNCF mixed preset, no SmoothQuant"
    assert "SQNR dB" not in found["augreg-tiny", "nncf-mixed"]
    assert found["deit-tiny", "vitexport"]["SQNR dB"] == 23.0


def test_a_note_drops_old_figures_and_new_figures_drop_an_old_note() -> None:
    mixed = ("dinov2-small", "nncf-mixed")
    kept = [{"model": mixed[0], "name": mixed[1], "SQNR dB": 20.3}]
    absent = merge(kept, {mixed: {"note": "nncf not installed"}})
    assert "SQNR dB" not in absent[0]
    assert absent[0]["note"] == "nncf not installed"
    back = merge(absent, {mixed: {"SQNR dB": 20.1}})
    assert "note" not in back[0]
    assert back[0]["SQNR dB"] == 20.1


def test_every_model_has_the_baseline_and_what_the_summary_shows_and_one_has_every_row() -> None:
    needed = {BASELINE, "vitexport-ort-x86", "vitexport-tensorrt"}
    assert all(needed <= {row.name for row in rows_of(model)} for model in MODELS)
    assert max(len(rows_of(model)) for model in MODELS) == len(ROWS)
    assert min(len(rows_of(model)) for model in MODELS) < len(ROWS)


def _judged(model: str, name: str, sqnr: float, parses: str = "yes", **others: Any) -> dict[str, Any]:
    return {"model": model, "name": name, "SQNR dB": sqnr, "TensorRT parses it": parses, **others}


def test_the_summary_takes_our_defaults_as_they_are_and_the_best_of_the_peers() -> None:
    classes = {"agreement %": 97.25, "top-1 change": 0.26}
    rows = [
        _judged("a", "vitexport", 30.0),
        _judged("a", "vitexport-tensorrt", 20.0, **classes),
        _judged("a", "vitexport-ort-x86", 21.0, "no", **classes),
        _judged("a", "onnxruntime-minmax", 10.0),
        _judged("a", "modelopt-fp8-max", 40.0),
        _judged("a", "nncf-mixed", 19.0, "no", **classes),
        _judged("a", "onnxruntime-dynamic", 19.0, "no", **{**classes, "agreement %": 90.0}),
        {"model": "a", "name": "modelopt-int8-max", "note": "not installed"},
        _judged("b", "vitexport-tensorrt", 15.0, "no"),
        {"model": "c", "name": "vitexport", "note": "failed"},
    ]
    assert best_per_model(rows) == [
        {
            "model": "a",
            "vitexport, default": "21.0 / 97.2 / +0.26",
            "vitexport, TensorRT": "20.0 / 97.2 / +0.26",
            "best peer, TensorRT": "onnxruntime-minmax: 10.0",
            "best peer": "nncf-mixed: 19.0 / 97.2 / +0.26",
        },
        dict.fromkeys(best_per_model(rows)[0], "") | {"model": "b"},
    ]


def test_a_models_table_has_its_rows_and_the_columns_it_has_figures_for() -> None:
    rows = [
        {"model": "a", "name": "nncf-mixed", "note": "nncf\nnot | installed"},
        {"model": "b", "name": "vitexport", "TensorRT parses it": "yes", "seconds": 9.0, "SQNR dB": 23.456},
        {"model": "b", "name": "onnxruntime-dynamic", "TensorRT parses it": "no", "MB": 8.0},
    ]
    assert figures_of("b", rows) == [
        {"name": "vitexport", "TensorRT": "yes", "SQNR dB": 23.456, "MB": ""},
        {"name": "onnxruntime-dynamic", "TensorRT": "no", "SQNR dB": "", "MB": 8.0},
    ]
    assert text_table("b", figures_of("b", rows)).splitlines() == [
        "b",
        "name                 TensorRT  SQNR dB  MB",
        "vitexport            yes          23.5",
        "onnxruntime-dynamic  no                  8",
    ]
    assert markdown_table(figures_of("a", rows)).splitlines()[-1] == r"| nncf-mixed | nncf not \| installed |"
    assert figures_of("c", rows) == []


def test_what_a_name_ran_is_said_once_for_all_models() -> None:
    named = {"name": "nncf-mixed", "tool and setting": "NNCF mixed preset"}
    rows = [
        {**named, "model": "a", "version": "nncf 1"},
        {**named, "model": "b", "version": "nncf 1"},
        {**named, "model": "c", "note": "failed"},
    ]
    assert tools(rows) == [{**named, "version": "nncf 1"}]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--model", "deit-tiny", "--source", "x"), "exclude each other"),
        (("--model", "augreg-tiny", "--only", "vitexport-fast"), "none of these rows"),
        (("--model", "nothing"), "invalid choice"),
    ],
)
def test_a_choice_that_measures_nothing_is_refused(
    arguments: tuple[str, ...], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quantizers", *arguments])
    with pytest.raises(SystemExit):
        quantizers.main()
    assert reason in capsys.readouterr().err


def test_row_names_are_unique_and_every_peer_has_requirements_and_a_worker() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    folder = ROOT / "benchmarks" / "peers"
    for row in ROWS:
        assert (folder / f"{row.worker}_worker.py").is_file()
        assert row.peer is None or (folder / f"{row.peer}.txt").is_file()


def test_rows_hold_known_columns() -> None:
    rows = merge([], {("deit-tiny", "nncf-mixed"): {"note": "nncf not installed", "a private figure": 1}})
    assert set(rows[0]) <= set(COLUMNS)


def test_a_score_counts_lost_images_as_a_negative_change() -> None:
    reference = np.eye(4, dtype=np.float32)
    found = reference.copy()
    found[0] = [0, 1, 0, 0]
    result = score(reference, found, [0, 1, 2, 3])
    assert result.agreement == 75
    assert result.top1_change == -25
    assert result.sqnr_db == pytest.approx(10 * np.log10(4 / 2))
