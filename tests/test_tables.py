"""Results print as tables and render in a notebook, with every cell escaped."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest

from tests.support.report_case import make_case
from vitexport.files import StageResult
from vitexport.tables import Table, Tabular, cell


def test_text_is_flush_left_and_numbers_flush_right() -> None:
    table = Table("Title", ("name", "value", "note"), (("a", "1", "x"), ("long", "100", "yy")), text=("note",))
    assert table.to_text().splitlines() == ["Title", "name  value  note", "a         1  x", "long    100  yy"]


def test_html_escapes_every_cell() -> None:
    page = Table("<t>", ("<c>",), (("<script>",),)).to_html()
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;t&gt;" in page and "&lt;c&gt;" in page


def test_a_number_that_is_not_there_is_a_dash() -> None:
    assert (cell(None, ".2f"), cell(0.98765, ".2f", 100)) == ("-", "98.77")


def test_a_result_shows_all_its_tables() -> None:
    @dataclass(frozen=True, repr=False)
    class Two(Tabular):
        def tables(self) -> tuple[Table, ...]:
            return Table("one", ("a",), (("1",),)), Table("two", ("b",), (("2",),))

    assert repr(Two()) == "one\na\n1\n\ntwo\nb\n2"
    assert Two()._repr_html_().count("<table>") == 2


def test_verification_and_bundle_render_in_a_notebook(tmp_path: Path) -> None:
    case = make_case(tmp_path / "bundle", noise=2.0)
    assert "int8" in repr(case.verification) and "FAILED" in case.verification._repr_html_()
    assert "simplified" in case.bundle._repr_html_()
    assert case.verification.to_dict()["passed"] is False
    with pytest.raises(FrozenInstanceError):
        case.verification.gates = ()  # type: ignore[misc]


def test_a_stage_result_says_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x" * 2_000_000)
    result = StageResult(path, "int8", details={"nodes": 3, "operators": {"Add": 3}})
    assert "2.00" in repr(result) and "nodes" in repr(result)
    assert result.to_dict()["details"] == {"nodes": 3, "operators": {"Add": 3}}
