"""The quantizer comparison: rows that are skipped by name, figures that join old ones, and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.quantizers import Bench, measure_rows
from benchmarks.suites.quantized_models import count_eight_bit, score
from benchmarks.suites.quantizer_rows import BASELINE, COLUMNS, ROWS, Row, merge
from benchmarks.suites.tables import replace_table
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
    assert ours["SQNR dB"] > 10
    assert 0 <= ours["agreement %"] <= 100
    assert ours["latency / float32"] > 0
    assert ours["time / MinMax"] == 1.0
    assert ours["version"].startswith("onnxruntime ")


def test_new_figures_replace_only_the_rows_that_were_measured() -> None:
    kept = [
        {"name": "nncf-mixed", "tool and setting": "old title", "SQNR dB": 20.3, "seconds": 9.0},
        {"name": "vitexport", "SQNR dB": 23.0},
        {"name": "a row that was removed", "SQNR dB": 1.0},
    ]
    rows = merge(kept, {"nncf-mixed": {"seconds": 8.0}})
    assert [row["name"] for row in rows] == ["vitexport", "nncf-mixed"]
    assert rows[1]["SQNR dB"] == 20.3
    assert rows[1]["seconds"] == 8.0
    assert rows[1]["tool and setting"] == "NNCF mixed preset, no SmoothQuant"
    assert rows[0]["SQNR dB"] == 23.0


def test_a_note_drops_old_figures_and_new_figures_drop_an_old_note() -> None:
    absent = merge([{"name": "nncf-mixed", "SQNR dB": 20.3}], {"nncf-mixed": {"note": "nncf not installed"}})
    assert "SQNR dB" not in absent[0]
    assert absent[0]["note"] == "nncf not installed"
    back = merge(absent, {"nncf-mixed": {"SQNR dB": 20.1}})
    assert "note" not in back[0]
    assert back[0]["SQNR dB"] == 20.1


def test_row_names_are_unique_and_every_peer_has_requirements_and_a_worker() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    folder = ROOT / "benchmarks" / "peers"
    for row in ROWS:
        assert (folder / f"{row.worker}_worker.py").is_file()
        assert row.peer is None or (folder / f"{row.peer}.txt").is_file()


def test_the_table_stands_between_its_markers_and_names_what_was_skipped(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("before\n<!-- table: quantizers -->\nold\n<!-- end: quantizers -->\nafter\n")
    rows = merge([], {"nncf-mixed": {"note": "nncf not installed"}, "onnxruntime-dynamic": {"SQNR dB": 19.5}})
    content = {"date": "2026-01-01", "machine": {"processor": "P", "cores": "2"}, "versions": {"onnx": "1"}}
    replace_table(document, "quantizers", {**content, "rows": rows})
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| nncf-mixed | NNCF mixed preset, no SmoothQuant |" in text
    assert "nncf not installed |" in text
    assert set(rows[0]) <= set(COLUMNS)


def test_eight_bit_operations_are_counted_by_what_they_read(tmp_path: Path) -> None:
    """One weighted product and one residual add behind Q/DQ; a second product with only one 8-bit operand."""
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")
    weight = numpy_helper.from_array(np.ones((4, 4), dtype=np.int8), "w")
    plain = numpy_helper.from_array(np.ones((4, 4), dtype=np.float32), "p")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["xd", "wt"], ["a"]),
        helper.make_node("MatMul", ["xd", "p"], ["b"]),
        helper.make_node("Transpose", ["xd"], ["xt"], perm=[1, 0]),
        helper.make_node("MatMul", ["xd", "xt"], ["c"]),
        helper.make_node("Add", ["xd", "a"], ["d"]),
        helper.make_node("Sum", ["b", "c", "d"], ["y"]),
    ]
    tensor = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", tensor[:1], tensor[1:], [scale, zero, weight, plain])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "g.onnx")
    found = count_eight_bit(tmp_path / "g.onnx")
    assert (found.weighted, found.products, found.others) == (1, 1, 1)


def test_a_score_counts_lost_images_as_a_negative_change() -> None:
    reference = np.eye(4, dtype=np.float32)
    found = reference.copy()
    found[0] = [0, 1, 0, 0]
    result = score(reference, found, [0, 1, 2, 3])
    assert result.agreement == 75
    assert result.top1_change == -25
    assert result.sqnr_db == pytest.approx(10 * np.log10(4 / 2))
