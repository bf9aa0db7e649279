"""Figures in the documents are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suites.paths import RESULTS
from benchmarks.suites.tables import DOCUMENTS, markdown_table, render_document, replace_table

_CONTENT: dict[str, Any] = {
    "date": "2026-01-01",
    "machine": {"processor": "CPU", "cores": "2"},
    "versions": {"numpy": "2.0"},
    "rows": [{"name": "a", "seconds": 0.123456}, {"name": "b", "note": "skipped"}],
}
_TEXT = "before\n<!-- table: {0} -->\nold\n<!-- end: {0} -->\nafter\n"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_committed_document_is_what_the_results_say(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert render_document(text) == text, "run `python -m benchmarks.tables`"


def test_every_committed_result_names_machine_and_versions() -> None:
    for path in RESULTS.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "rows" in content:
            assert content["machine"]["processor"] and content["versions"], path.name


def test_a_table_is_filled_from_the_results_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text(json.dumps(_CONTENT))
    filled = render_document(_TEXT.format("known") + _TEXT.format("unknown"), tmp_path)
    table = markdown_table(_CONTENT["rows"])
    assert f"\n{table}\n\n2026-01-01, CPU, 2 cores; numpy 2.0\n<!-- end: known -->\nafter" in filled
    assert _TEXT.format("unknown") in filled, "a benchmark that was not run leaves its table alone"
    assert render_document(filled, tmp_path) == filled


def test_a_table_has_a_cell_for_every_column_of_every_row() -> None:
    assert markdown_table(_CONTENT["rows"]).splitlines() == [
        "| name | seconds | note |",
        "| --- | --- | --- |",
        "| a | 0.123 |  |",
        "| b |  | skipped |",
    ]


def test_the_summary_has_one_column_per_model(tmp_path: Path) -> None:
    rows = [
        {"model": model, "batch": batch, "candidate": name, "speed": speed}
        for model, batch, name, speed in (
            ("tiny", 1, "ours", 1.0),
            ("tiny", 1, "ours, again (noise)", 1.01),
            ("tiny", 1, "theirs", 0.914),
            ("tiny", 8, "theirs", 0.5),
            ("base", 1, "ours", 1.0),
        )
    ] + [{"model": "base", "batch": 1, "candidate": "theirs", "note": "skipped: not installed"}]
    (tmp_path / "inference.json").write_text(json.dumps({**_CONTENT, "rows": rows}))
    filled = render_document(_TEXT.format("inference-summary"), tmp_path)
    assert (
        "| speed at batch 1 | tiny | base |\n| --- | --- | --- |\n| ours | 1.00x | 1.00x |\n| theirs | 0.91x |  |"
        in filled
    )


def test_a_document_without_the_place_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("nothing here")
    with pytest.raises(ValueError, match="table: known"):
        replace_table(document, "known", _CONTENT)
    assert document.read_text() == "nothing here"


def test_the_quantizers_have_a_summary_and_a_table_per_model(tmp_path: Path) -> None:
    rows = [
        {"model": "deit-tiny", "name": "vitexport-ort-x86", "tool and setting": "Ours", "SQNR dB": 23.5},
        {"model": "deit-tiny", "name": "onnxruntime-minmax", "tool and setting": "Theirs", "SQNR dB": 9.5},
    ]
    (tmp_path / "quantizers.json").write_text(json.dumps({**_CONTENT, "rows": rows}), encoding="utf-8")
    names = ("summary", "deit-tiny", "augreg-tiny", "tools")
    filled = render_document("".join(_TEXT.format(f"quantizers-{name}") for name in names), tmp_path)
    assert "| deit-tiny | 23.5 |  |  | onnxruntime-minmax: 9.5 |" in filled
    assert "| name | SQNR dB |\n| --- | --- |\n| vitexport-ort-x86 | 23.5 |\n| onnxruntime-minmax | 9.5 |" in filled
    assert "<!-- table: quantizers-augreg-tiny -->\nNot measured yet.\n<!-- end: quantizers-augreg-tiny -->" in filled
    assert "| vitexport-ort-x86 | Ours |  |" in filled
