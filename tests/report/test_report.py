"""What a report must say, and what it must never do."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.support.report_case import Case, make_case, replace_details
from vitexport.bundle.recording import Recording
from vitexport.recipe.settings import Gates
from vitexport.report import build_document, write_report
from vitexport.report.wording import number, percent, size
from vitexport.verification.judge import judge


class _Page(HTMLParser):
    """Collects what matters of a page: its text, its headings in order, addresses and ids."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.headings: list[int] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images_without_text = 0
        self._quiet = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._quiet += tag in ("style", "svg")
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.addresses += [value for key, value in attrs if key in ("src", "href", "action") and value]
        if values.get("id"):
            self.ids.append(values["id"] or "")
        if tag == "img" and not values.get("alt"):
            self.images_without_text += 1
        if tag == "svg" and not values.get("aria-label"):
            self.images_without_text += 1

    def handle_endtag(self, tag: str) -> None:
        self._quiet -= tag in ("style", "svg")

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def _page(case: Case) -> _Page:
    write_report(case.bundle, case.verification, case.recipe)
    return _Page((case.bundle.root / "report.html").read_text(encoding="utf-8"))


def test_report_writes_json_html_and_markdown_with_json_first(case: Case) -> None:
    written = write_report(case.bundle, case.verification, case.recipe)
    assert [path.name for path in written] == ["report.json", "report.html", "report.md"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_page_about_reports_names_the_schema_and_every_key(case: Case) -> None:
    write_report(case.bundle, case.verification, case.recipe)
    document = json.loads((case.bundle.root / "report.json").read_text(encoding="utf-8"))
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    assert f"## `report.json`, schema {document['schema']}\n" in text
    assert {key for key in document if f"`{key}`" not in text} == set()


def test_page_states_the_verdict_before_everything_else(case: Case) -> None:
    words = _page(case).words
    assert words.index("Accepted") < words.index("Variants") < words.index("Gates") < words.index("Where it comes from")


def test_rejected_page_names_variant_gate_limit_and_value(tmp_path: Path) -> None:
    bad = make_case(tmp_path / "b", noise=2.0, speed=0.5, gates=Gates(max_top1_drop=0.5, min_speedup=1.1))
    words = _page(bad).words
    assert "Rejected" in words
    assert "int8: output 'logits': agreement" in words
    assert re.search(r"gate min_speedup: limit 1\.1, is 0\.5", words)
    assert re.search(r"int8 is slower than simplified, which it replaces", words)


def test_times_taken_on_a_busy_machine_say_so(case: Case) -> None:
    assert "The machine was busy." in _page(case).words
    assert "The machine was busy." in (case.bundle.root / "report.md").read_text(encoding="utf-8")


def test_page_needs_no_network(case: Case) -> None:
    page = _page(case)
    html = (case.bundle.root / "report.html").read_text(encoding="utf-8")
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    # Namespaces are names, not addresses to fetch; nothing else may look like one.
    found = set(re.findall(r"(?:https?:)?//[\w.-]+[^\s\"'<)]*", re.sub(r"data:[^\"']*", "", html)))
    assert {address for address in found if "www.w3.org" not in address} == set()
    assert "@import" not in html
    assert "<script" not in html


def test_names_from_outside_are_escaped(case: Case) -> None:
    page = _page(case)
    html = (case.bundle.root / "report.html").read_text(encoding="utf-8")
    assert "<class &" not in html
    assert "<class & " in page.words  # and yet readable
    assert "case <b>" in page.words


def test_headings_never_skip_a_level_and_every_picture_has_words(case: Case) -> None:
    page = _page(case)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.images_without_text == 0
    assert len(page.ids) == len(set(page.ids))


def test_gate_that_was_not_measured_is_shown_as_such_and_fails(tmp_path: Path) -> None:
    made = make_case(tmp_path / "b", gates=Gates(min_speedup=1.0))
    without = made.bundle.without({"benchmark"})
    verification = judge(without, made.recipe)
    document = build_document(without, verification, made.recipe)
    assert document["passed"] is False
    assert document["gates"][0]["value"] is None
    page = _page(Case(without, verification, made.recipe))
    assert "not measured" in page.words
    assert "Rejected" in page.words
    assert "not measured" in (without.root / "report.md").read_text(encoding="utf-8")


def test_json_holds_no_nan_or_infinity(tmp_path: Path) -> None:
    made = make_case(tmp_path / "b", noise=0.0)
    write_report(made.bundle, made.verification, made.recipe)

    def refuse(name: str) -> float:
        raise AssertionError(name)

    text = (made.bundle.root / "report.json").read_text(encoding="utf-8")
    document = json.loads(text, parse_constant=refuse)
    assert document["variants"][2]["parity"]["outputs"][0]["sqnr_db"] is None
    assert "exact" in (made.bundle.root / "report.md").read_text(encoding="utf-8")


def test_nan_answers_are_reported_not_drawn(tmp_path: Path) -> None:
    made = make_case(tmp_path / "b")
    path = made.bundle.path(made.bundle.artifact("recording/int8"))
    recording = Recording.load(path)
    broken = recording.outputs["logits"].copy()
    broken[3] = np.nan
    Recording(recording.runtime, recording.images, recording.input_sha256, {"logits": broken}).save(path)
    verification = judge(made.bundle, made.recipe)
    words = _page(Case(made.bundle, verification, made.recipe)).words
    assert "holds NaN or infinity on 1 of 48 images" in words
    assert "Rejected" in words


def test_every_step_is_held_against_pytorch_and_against_the_one_before_it(case: Case) -> None:
    words = _page(case).words
    assert words.index("Who lost what") < words.index("Gates")
    lines = (case.bundle.root / "report.md").read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| step | against |"))
    rows = [line.split("|")[1:3] for line in lines[start + 2 : start + 5]]
    assert [tuple(cell.strip() for cell in row) for row in rows] == [
        ("simplified", "PyTorch"),
        ("int8", "PyTorch"),
        ("int8", "simplified"),
    ]
    assert lines[start + 5] == ""


def test_markdown_tables_have_as_many_cells_as_columns(case: Case) -> None:
    write_report(case.bundle, case.verification, case.recipe)
    lines = (case.bundle.root / "report.md").read_text(encoding="utf-8").splitlines()
    columns = 0
    rows = 0
    for line in lines:
        cells = len(re.findall(r"(?<!\\)\|", line))
        if line.startswith("| ---"):
            columns = cells
        elif not line.startswith("|"):
            columns = 0
        elif columns:
            rows += 1
            assert cells == columns, line
    assert rows >= 3 + 2 + 3


def test_disagreeing_images_show_both_predictions_and_their_pixels(tmp_path: Path) -> None:
    made = make_case(tmp_path / "b", noise=2.0)
    document = build_document(made.bundle, made.verification, made.recipe)
    assert len(document["disagreements"]) == 8
    assert not any(entry["same_decision"] for entry in document["disagreements"])
    distances = [entry["distance"] for entry in document["disagreements"]]
    assert distances == sorted(distances, reverse=True)
    words = _page(made).words
    first = document["disagreements"][0]
    assert f"{first['image']}: {first['target_name']} PyTorch {first['reference']['name']}" in words


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0"), (1.0e-6, "1.00e-6"), (0.5, "0.5"), (12.345, "12.3"), (2.0e7, "2.00e7")]
)
def test_numbers_are_short_and_exact_where_they_can_be(value: float | None, text: str) -> None:
    assert number(value) == text


def test_only_everything_is_a_hundred_percent() -> None:
    assert percent(1.0) == "100.0 %"
    assert percent(0.99999) == "99.999 %"
    assert size(1_234_567) == "1.23 MB"


def test_report_says_how_it_was_quantized_worst_layer_first_and_what_a_budget_kept(case: Case) -> None:
    as_json, html, markdown = write_report(case.bundle, case.verification, case.recipe)
    found = json.loads(as_json.read_text(encoding="utf-8"))["quantization"]["int8"]
    assert [entry["layer_sqnr_db"] for entry in found["ranges"]] == [21.5, 30.5, 38.5]
    for page in (html, markdown):
        text = page.read_text(encoding="utf-8")
        assert "7 (41.2x)" in text and "blocks.0.mlp.fc2 (kept float)" in text
        assert "kept in float: 0.fc2; SQNR 20.0 to 26.0 dB, agreement 93.8 to 100.0 % on 64" in text


def test_report_says_how_near_it_is_what_stayed_float_and_what_other_images_clip(case: Case) -> None:
    as_json, html, markdown = write_report(case.bundle, case.verification, case.recipe)
    found = json.loads(as_json.read_text(encoding="utf-8"))["quantization"]["int8"]
    assert found["kept_float"][1] == {"groups": ["1.proj"], "reason": "excluded by `1.proj`"}
    for text in (_Page(html.read_text(encoding="utf-8")).words, markdown.read_text(encoding="utf-8")):
        assert "SQNR 26.0 dB (95 % interval 25.0 to 27.0), agreement 100.0 % (90 to 100) on 64" in text
        assert "192 calibration images chose every range; 64 others were held out" in text
        assert "Stayed float, and why" in text and "excluded by `1.proj`" in text
        assert "blocks.1.mlp.fc2 (5.5 times the error)" in text
    lines = markdown.read_text(encoding="utf-8").splitlines()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[3:5]] for line in lines if "|" in line
    }
    assert cells["blocks.1.mlp.fc2"] == ["-1.75 to 2", "16"]
    assert cells["blocks.0.mlp.fc2 (kept float)"] == ["–", "–"]


def test_bundles_of_before_and_bodies_of_16_bits_have_a_page_too(case: Case) -> None:
    old = {
        "layers": ["a"],
        "seen": [0.0, 1.0],
        "scale": 0.1,
        "kept_float": False,
        "layer_sqnr_db": 20.0,
        "outliers": [],
    }
    for details in ({"ranges": [old]}, {"quality": None, "not_measured": "no kernel"}):
        changed = [
            replace_details(artifact, artifact.companions, details) if artifact.name == "int8" else artifact
            for artifact in case.bundle.artifacts
        ]
        bundle = case.bundle.without({"int8"})
        for artifact in changed:
            bundle = bundle.with_artifact(artifact)
        page = write_report(bundle, case.verification, case.recipe)[1].read_text(encoding="utf-8")
        assert "How int8 was quantized" in page
        assert ("Measured: not here: no kernel." in page) == ("quality" in details)
