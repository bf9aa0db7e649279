"""Every gate: what it measures, when it passes, and that it never passes unmeasured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vitexport.benchmark.latency import Latency
from vitexport.recipe.settings import Gates
from vitexport.scoring import Head
from vitexport.verification.accuracy import Accuracy, PairedDifference
from vitexport.verification.gates import GATES, judge_gates, not_set, of_outputs
from vitexport.verification.paired_map import MapDifference
from vitexport.verification.parity import OutputParity, ParityReport
from vitexport.verification.result import GateResult, VariantResult
from vitexport.verification.scores import LabelScores


def latency(p50_ms: float) -> Latency:
    return Latency(1, 100, p50_ms, p50_ms, p50_ms, p50_ms, 1000 / p50_ms)


def parity(**changes: Any) -> ParityReport:
    measured: dict[str, Any] = {"min_cosine": 0.99, "agreement": 0.97, "mean_abs": 0.1, "correlation": None}
    measured = {"mean_abs_standard_error": 0.02, **measured, **changes}
    output = OutputParity(
        "logits",
        0.1,
        0.1,
        0.1,
        sqnr_db=30.0,
        agreement_top5=None,
        worst_image=0,
        **measured,
    )
    return ParityReport("pytorch", "int8", 100, (output,), ())


BASE = VariantResult("simplified", "onnxruntime", "float32", None, None, None, None, 1000, (latency(10.0),))
LAST = VariantResult(
    "int8",
    "onnxruntime",
    "int8",
    parity(),
    None,
    Accuracy(100, 0.8, 0.95),
    PairedDifference(100, 1.0, 2, 1, 1.0, (-2.4, 4.4)),
    bytes=300,
    latency=(latency(4.0),),
    executed={"int8": 0.9, "float32": 0.1},
)
LABELS = (
    replace(BASE, accuracy=LabelScores(100, 0.9, 0.8, 0.7, 0.6)),
    replace(LAST, accuracy=LabelScores(100, 0.88, 0.8, 0.7, 0.6), map_difference=MapDifference(100, 2.0, 1.0)),
)
VALUE = (BASE, replace(LAST, parity=parity(agreement=None, mean_abs=0.25, correlation=0.98)))
HEADS = {"max_map_drop": LABELS, "max_mae": VALUE, "min_correlation": VALUE}
"""The variants that the gates of other heads look at."""
NOT_RUN = replace(LAST, parity=None, accuracy=None, difference=None, latency=(), executed=None, not_run="no kernel")
VALUES = {
    "max_top1_drop": 1.0,
    "max_map_drop": 2.0,
    "max_mae": 0.25,
    "min_correlation": 0.98,
    "min_agreement": 0.97,
    "min_cosine": 0.99,
    "min_speedup": 2.5,
    "max_size_ratio": 0.3,
    "min_actual_precision": 0.9,
}
"""What each gate measures of its two variants."""


def judged(name: str, limit: float, last: VariantResult = LAST, base: VariantResult | None = BASE) -> GateResult:
    variants = [last] if base is None or base is last else [base, last]
    results = judge_gates(Gates.model_validate({name: limit}), variants)
    assert len(results) == 1
    return results[0]


def test_every_limit_of_the_recipe_has_one_gate() -> None:
    assert set(GATES) == set(Gates().limits()) == set(VALUES)
    for name, gate in GATES.items():
        assert gate.title
        assert gate.limit.format(0.5) != gate.limit, name


@pytest.mark.parametrize("name", GATES)
def test_a_gate_passes_on_its_limit_and_fails_beyond_it(name: str) -> None:
    base, last = HEADS.get(name, (BASE, LAST))
    value = VALUES[name]
    beyond = -0.01 if name.startswith("max_") else 0.01
    exact = judged(name, value + (1e-9 if name == "max_map_drop" else 0), last, base)
    assert exact.value == pytest.approx(value)
    assert exact.passed is True
    assert judged(name, value - beyond, last, base).passed is True
    failed = judged(name, value + beyond, last, base)
    assert failed.passed is False
    assert failed.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "last", "base", "why"),
    [
        ("max_top1_drop", replace(LAST, difference=None), BASE, "needs labelled verification images"),
        ("min_agreement", replace(LAST, parity=None), BASE, "needs logits"),
        ("min_agreement", replace(LAST, parity=parity(agreement=None)), BASE, "needs logits"),
        ("max_map_drop", LAST, BASE, "several labels at once"),
        ("max_mae", LAST, BASE, "needs the values of a regression"),
        ("min_correlation", replace(LAST, parity=None), BASE, "needs the values of a regression"),
        ("min_cosine", replace(LAST, parity=parity(min_cosine=None)), BASE, "one number per image has no direction"),
        ("min_cosine", replace(LAST, parity=None), BASE, "outputs could not be compared"),
        ("min_cosine", replace(LAST, parity=replace(parity(), outputs=())), BASE, "outputs could not be compared"),
        ("min_speedup", LAST, None, "there is no variant 'simplified' to compare with"),
        ("min_speedup", replace(LAST, latency=()), BASE, "needs a benchmark of 'int8' and 'simplified'"),
        ("min_speedup", LAST, replace(BASE, latency=()), "needs a benchmark"),
        ("min_speedup", replace(LAST, runtime="tensorrt"), BASE, "'simplified' ran on onnxruntime, 'int8' on tensorrt"),
        ("max_size_ratio", LAST, None, "there is no variant 'simplified' to compare with"),
        ("max_size_ratio", replace(LAST, bytes=None), BASE, "needs the file sizes of 'int8' and 'simplified'"),
        ("max_size_ratio", LAST, replace(BASE, bytes=None), "needs the file sizes"),
        ("min_actual_precision", replace(LAST, executed=None), BASE, "onnxruntime was not profiled on 'int8'"),
        ("max_top1_drop", NOT_RUN, BASE, "'int8' was not run here"),
        ("min_agreement", NOT_RUN, BASE, "'int8' was not run here"),
        ("min_speedup", NOT_RUN, BASE, "'int8' was not run here"),
        ("min_actual_precision", NOT_RUN, BASE, "'int8' was not run here"),
    ],
)
def test_a_gate_that_was_not_measured_says_why_and_never_passes(
    name: str, last: VariantResult, base: VariantResult | None, why: str
) -> None:
    # The weakest limit there is: whatever was measured would meet it.
    weakest = 1e9 if name.startswith("max_") else 1e-9
    result = judged(name, weakest, last, base)
    assert result.value is None
    assert result.passed is False
    assert why in result.note


@pytest.mark.parametrize("name", ["min_agreement", "min_cosine"])
def test_nan_meets_no_limit(name: str) -> None:
    last = replace(LAST, parity=parity(min_cosine=float("nan"), agreement=float("nan")))
    assert judged(name, 1e-9, last).passed is False


def test_work_in_another_precision_counts_as_none_in_the_asked_one() -> None:
    result = judged("min_actual_precision", 0.01, replace(LAST, executed={"float32": 1.0}))
    assert (result.value, result.passed) == (0.0, False)
    assert "float32 100.0%" in result.note


@pytest.mark.parametrize("name", ["min_speedup", "max_size_ratio"])
def test_a_baseline_that_is_the_last_variant_gains_nothing(name: str) -> None:
    result = judged(name, 1.0, BASE, BASE)
    assert (result.value, result.passed) == (1.0, True)
    assert result.note == "nothing was replaced"
    assert judged(name, 0.9 if name.startswith("max_") else 1.1, BASE, BASE).passed is False


def test_a_drop_comes_with_how_sure_it_is() -> None:
    assert judged("max_top1_drop", 2).note == (
        "95 % interval -3.68 to +6.14 points, McNemar p = 1, 100 images; too few to tell it from the limit, which "
        "about 1,400 images would"
    )


@pytest.mark.parametrize(("on_undecided", "passed"), [("fail", False), ("pass", True)])
def test_a_figure_that_misses_its_limit_by_less_than_its_interval_is_undecided(on_undecided: str, passed: bool) -> None:
    gates = Gates.model_validate({"max_top1_drop": 0.5, "min_agreement": 0.98, "on_undecided": on_undecided})
    results = judge_gates(gates, [BASE, LAST])  # a drop of 1.0, and an agreement of 0.97, on 100 images
    for gate in results:
        assert (gate.undecided, gate.passed, gate.status) == (True, passed, "undecided")
        assert gate.interval is not None and gate.interval[0] <= gate.limit <= gate.interval[1]
        assert gate.images_needed is not None and gate.images_needed > 700
        assert f"about {gate.images_needed:,} images would" in gate.note


@pytest.mark.parametrize(
    ("gate", "limit", "images"),
    [("max_map_drop", 1.0, 390), ("max_mae", 0.23, 390), ("min_correlation", 0.985, 190)],
    ids=str,
)
def test_figures_of_other_heads_are_undecided_too(gate: str, limit: float, images: int) -> None:
    found = judged(gate, limit, HEADS[gate][1])
    assert (found.undecided, found.passed, found.images_needed) == (True, False, images)


def test_no_image_judged_differently_passes_and_says_what_so_few_cannot_exclude() -> None:
    same = replace(LAST, difference=PairedDifference(32, 0.0, 0, 0, 1.0, (-10.7, 10.7)))
    gate = judged("max_top1_drop", 0.5, same)
    assert (gate.passed, gate.undecided, gate.images_needed) == (True, False, 770)
    assert gate.note.startswith("95 % interval -10.72 to +10.72 points")
    assert "too few to tell it from the limit, which about 770 images would" in gate.note


def test_what_the_images_do_decide_is_decided_whatever_the_recipe_says_of_the_rest() -> None:
    clear = replace(LAST, parity=replace(parity(agreement=0.5), images=400))
    results = judge_gates(Gates(min_agreement=0.9, on_undecided="pass"), [BASE, clear])
    assert (results[0].passed, results[0].undecided, results[0].images_needed) == (False, False, None)
    nan = replace(LAST, parity=parity(agreement=float("nan")))
    assert judge_gates(Gates(min_agreement=0.9, on_undecided="pass"), [BASE, nan])[0].passed is False


MACHINES = {"min_speedup", "max_size_ratio", "min_actual_precision"}


@pytest.mark.parametrize(
    ("head", "of_its_answers"),
    [
        (Head(), {"max_top1_drop", "min_agreement"}),
        (Head(scoring="sigmoid"), {"max_map_drop", "min_agreement"}),
        (Head(scoring="none"), {"max_mae", "min_correlation"}),
        (Head("segment"), {"min_agreement"}),
        (Head("depth"), set()),
        (Head("features"), set()),
    ],
)
def test_limits_that_are_not_set_and_could_judge_a_model_are_named(head: Head, of_its_answers: set[str]) -> None:
    gates = Gates(min_cosine=0.9)
    assert [result.gate for result in judge_gates(gates, [BASE, LAST])] == ["min_cosine"]
    assert set(not_set(gates, head)) == of_its_answers | MACHINES


def test_another_baseline_can_be_chosen() -> None:
    other = replace(BASE, name="onnx", bytes=600)
    gates = Gates(max_size_ratio=0.5, baseline="onnx")
    results = judge_gates(gates, [other, BASE, LAST])
    assert results[0].value == pytest.approx(0.5)


def test_only_gates_of_outputs_hold_on_another_machine() -> None:
    gates = Gates.model_validate(dict(VALUES))
    kept = {name for name, limit in of_outputs(gates).limits().items() if limit is not None}
    assert kept == {"max_mae", "min_correlation", "min_agreement", "min_cosine", "min_actual_precision"}
    assert of_outputs(gates).min_cosine == gates.min_cosine
    assert of_outputs(Gates()) == Gates(on_undecided="pass")


def test_gates_that_ask_for_a_gain_are_those_that_a_float_model_cannot_meet() -> None:
    assert {name for name, gate in GATES.items() if gate.asks_gain} == {
        "min_speedup",
        "max_size_ratio",
        "min_actual_precision",
    }
