"""Every gate: what it measures, when it passes, and that it never passes unmeasured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vitexport.benchmark.latency import Latency
from vitexport.recipe.settings import Gates
from vitexport.verification.accuracy import Accuracy, PairedDifference
from vitexport.verification.gates import GATES, judge_gates, of_outputs
from vitexport.verification.parity import OutputParity, ParityReport
from vitexport.verification.result import GateResult, VariantResult


def latency(p50_ms: float) -> Latency:
    return Latency(1, 100, p50_ms, p50_ms, p50_ms, p50_ms, 1000 / p50_ms)


def parity(**changes: Any) -> ParityReport:
    measured: dict[str, Any] = {"min_cosine": 0.99, "agreement": 0.97, **changes}
    output = OutputParity(
        "logits",
        0.1,
        0.1,
        0.1,
        sqnr_db=30.0,
        agreement_top5=None,
        worst_image=0,
        mean_abs=0.1,
        correlation=None,
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
NOT_RUN = replace(LAST, parity=None, accuracy=None, difference=None, latency=(), executed=None, not_run="no kernel")
VALUES = {
    "max_top1_drop": 1.0,
    "min_agreement": 0.97,
    "min_cosine": 0.99,
    "min_speedup": 2.5,
    "max_size_ratio": 0.3,
    "min_actual_precision": 0.9,
}
"""What each gate measures of these two variants."""


def judged(name: str, limit: float, last: VariantResult = LAST, base: VariantResult | None = BASE) -> GateResult:
    variants = [last] if base is None or base is last else [base, last]
    results, _ = judge_gates(Gates.model_validate({name: limit}), variants)
    assert len(results) == 1
    return results[0]


def test_every_limit_of_the_recipe_has_one_gate() -> None:
    assert set(GATES) == set(Gates().limits()) == set(VALUES)
    for name, gate in GATES.items():
        assert gate.title
        assert gate.limit.format(0.5) != gate.limit, name


@pytest.mark.parametrize("name", GATES)
def test_a_gate_passes_on_its_limit_and_fails_beyond_it(name: str) -> None:
    value = VALUES[name]
    beyond = -0.01 if name.startswith("max_") else 0.01
    exact = judged(name, value)
    assert exact.value == pytest.approx(value)
    assert exact.passed is True
    assert judged(name, value - beyond).passed is True
    failed = judged(name, value + beyond)
    assert failed.passed is False
    assert failed.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "last", "base", "why"),
    [
        ("max_top1_drop", replace(LAST, difference=None), BASE, "needs labelled verification images and logits"),
        ("min_agreement", replace(LAST, parity=None), BASE, "needs logits"),
        ("min_agreement", replace(LAST, parity=parity(agreement=None)), BASE, "needs logits"),
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
    assert judged("max_top1_drop", 2).note == ("95 % interval -2.40 to +4.40 points, McNemar p = 1, 100 images")


def test_limits_that_are_not_set_are_named_and_not_judged() -> None:
    results, unchecked = judge_gates(Gates(min_cosine=0.9), [BASE, LAST])
    assert [result.gate for result in results] == ["min_cosine"]
    assert set(unchecked) == set(GATES) - {"min_cosine"}


def test_another_baseline_can_be_chosen() -> None:
    other = replace(BASE, name="onnx", bytes=600)
    gates = Gates(max_size_ratio=0.5, baseline="onnx")
    results, _ = judge_gates(gates, [other, BASE, LAST])
    assert results[0].value == pytest.approx(0.5)


def test_only_gates_of_outputs_hold_on_another_machine() -> None:
    gates = Gates.model_validate(dict(VALUES))
    kept = {name for name, limit in of_outputs(gates).limits().items() if limit is not None}
    assert kept == {"min_agreement", "min_cosine", "min_actual_precision"}
    assert of_outputs(gates).min_cosine == gates.min_cosine
    assert of_outputs(Gates()) == Gates()


def test_gates_that_ask_for_a_gain_are_those_that_a_float_model_cannot_meet() -> None:
    assert {name for name, gate in GATES.items() if gate.asks_gain} == {
        "min_speedup",
        "max_size_ratio",
        "min_actual_precision",
    }
