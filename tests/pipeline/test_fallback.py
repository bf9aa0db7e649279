"""When a gate fails the next safer candidate is tried, and the story is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.paths import ROOT
from vitexport.benchmark.latency import summarize
from vitexport.bundle.recording import Recording
from vitexport.errors import QuantizeError
from vitexport.pipeline import recipe_run
from vitexport.pipeline.fallback import Candidate, candidates, settle
from vitexport.pipeline.run import run
from vitexport.recipe.load import load_recipe, parse_recipe, validated
from vitexport.recipe.settings import Budget, Gates, QuantizeSettings, Recipe, Tolerance
from vitexport.verification.result import VerificationResult
from vitexport.verification.summary import headline, remarks
from vitexport.verification.variants import VariantInput, evaluate_variants


def recording(logits: np.ndarray[Any, np.dtype[np.float32]]) -> Recording:
    names = tuple(str(index) for index in range(len(logits)))
    return Recording("onnxruntime", names, names, {"logits": logits})


def verification(
    *, noise: float, speed: float, precision: str = "int8", gates: Gates, float_noise: float = 0.0
) -> VerificationResult:
    random = np.random.default_rng(0)
    logits = random.normal(size=(200, 10)).astype(np.float32)

    def variant(name: str, kind: str, amount: float, milliseconds: float) -> VariantInput:
        answers = logits + random.normal(scale=amount, size=logits.shape).astype(np.float32) if amount else logits
        latency = (summarize(np.full(20, milliseconds * 1e-3), 1),)
        limits = Tolerance(min_agreement=1.0) if kind == "float32" else Tolerance()
        return VariantInput(name, kind, recording(answers), limits, bytes=100, latency=latency)

    variants = [variant("simplified", "float32", float_noise, 10.0)]
    if precision != "float32":
        variants.append(variant(precision, precision, noise, 10.0 / speed))
    return evaluate_variants(variant("pytorch", "float32", 0.0, 12.0), variants, gates=gates)


def test_candidates_go_from_what_was_asked_to_no_quantization() -> None:
    asked = QuantizeSettings(attention="int8", target="tensorrt", exclude=("fc2",))
    found = candidates(asked, Gates(max_top1_drop=0.5))
    assert [choice.name for choice in found] == [
        "int8 linear layers and attention",
        "int8 linear layers",
        "int8 linear layers, fewest layers that keep the accuracy",
        "fp16",
        "float32, not quantized",
    ]
    assert found[0].settings == asked
    assert found[2].settings is not None
    assert found[2].settings.budget == Budget(max_top1_drop=0.5)
    assert found[3].settings is not None
    assert found[3].settings.precision == "fp16"
    assert found[2].settings.exclude == ("fc2",) and found[3].settings.exclude == ()  # a 16-bit body quantizes no layer
    assert found[-1].settings is None


def test_cpu_targets_are_not_offered_half_precision_and_a_given_budget_is_kept() -> None:
    found = candidates(QuantizeSettings(target="ort-x86", budget=Budget(min_sqnr_db=20)), Gates())
    assert [choice.settings.precision if choice.settings else None for choice in found] == ["int8", None]
    assert [
        choice.settings.precision if choice.settings else None
        for choice in candidates(QuantizeSettings(precision="fp16", target="tensorrt"), Gates())
    ] == ["fp16", None]


CHOICES = (
    Candidate("first", QuantizeSettings()),
    Candidate("fewer", QuantizeSettings(budget=Budget(min_agreement=0.9)), saves_accuracy_only=True),
    Candidate("none", None),
)


def tried(
    outcomes: dict[str, VerificationResult | Exception],
) -> tuple[list[str], Callable[[Candidate], VerificationResult]]:
    order: list[str] = []

    def attempt(choice: Candidate) -> VerificationResult:
        order.append(choice.name)
        outcome = outcomes[choice.name]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return order, attempt


def test_a_candidate_that_nothing_here_can_run_is_not_kept() -> None:
    gates = Gates()
    sound = verification(noise=0, speed=1, precision="float32", gates=gates)
    unknown = VariantInput("bf16", "bfloat16", Recording.of_nothing("no kernel"), Tolerance(), bytes=50)
    logits = np.eye(10, dtype=np.float32)
    reference = VariantInput("pytorch", "float32", recording(logits), Tolerance())
    order, attempt = tried({"first": evaluate_variants(reference, [unknown], gates=gates), "fewer": sound})
    done = settle(CHOICES, attempt)
    assert order == ["first", "fewer"]
    assert [entry.kept for entry in done] == [False, True]
    assert done[0].reasons == ("bf16: not run here: no kernel",)


def test_the_first_candidate_that_passes_is_kept_and_nothing_more_is_tried() -> None:
    gates = Gates(min_agreement=0.9)
    order, attempt = tried(
        {
            "first": verification(noise=2.0, speed=2, gates=gates),
            "fewer": verification(noise=0.01, speed=1.5, gates=gates),
        }
    )
    done = settle(CHOICES, attempt)
    assert order == ["first", "fewer"]
    assert [entry.kept for entry in done] == [False, True]
    assert "min_agreement" in done[0].reasons[0]
    assert done[1].reasons == ()


def test_after_a_speed_failure_more_float_layers_are_passed_over() -> None:
    gates = Gates(min_speedup=1.0)
    order, attempt = tried(
        {
            "first": verification(noise=0.01, speed=0.8, gates=gates),
            "none": verification(noise=0, speed=1, precision="float32", gates=gates),
        }
    )
    done = settle(CHOICES, attempt)
    assert order == ["first", "none"]
    assert "passed over" in done[1].reasons[0]
    assert done[2].kept
    assert done[2].passed


def test_a_gain_that_nothing_reaches_keeps_the_safest_and_still_fails() -> None:
    gates = Gates(min_speedup=3.0)
    order, attempt = tried(
        {
            "first": verification(noise=0.01, speed=1.5, gates=gates),
            "none": verification(noise=0, speed=1, precision="float32", gates=gates),
        }
    )
    done = settle(CHOICES, attempt)
    assert order == ["first", "none"]
    assert done[-1].kept
    assert not done[-1].passed
    assert "nothing was replaced" in done[-1].reasons[0]


def test_a_candidate_that_cannot_be_made_is_part_of_the_story() -> None:
    gates = Gates(min_agreement=0.9)
    _, attempt = tried(
        {
            "first": QuantizeError("nothing to quantize"),
            "fewer": QuantizeError("no budget fits"),
            "none": verification(noise=0, speed=1, precision="float32", gates=gates),
        }
    )
    done = settle(CHOICES, attempt)
    assert [entry.reasons for entry in done[:2]] == [
        ("could not be made: nothing to quantize",),
        ("could not be made: no budget fits",),
    ]
    assert done[2].kept


def test_a_float_variant_that_fails_ends_the_search_because_quantization_is_not_to_blame() -> None:
    order, attempt = tried({"first": verification(noise=0.01, speed=2, gates=Gates(), float_noise=3.0)})
    done = settle(CHOICES, attempt)
    assert order == ["first"]
    assert done[0].kept
    assert not done[0].passed
    assert any(reason.startswith("simplified:") for reason in done[0].reasons)


def test_int8_that_is_slower_is_never_silent() -> None:
    slow = verification(noise=0.01, speed=0.9, gates=Gates())
    assert slow.passed
    assert any("int8 is slower than simplified, which it replaces" in line for line in remarks(slow))
    assert not any("slower" in line for line in remarks(verification(noise=0.01, speed=1.2, gates=Gates())))


@pytest.mark.parametrize(("target", "machine"), [("ort-arm64", "x86_64"), ("ort-x86", "aarch64")])
def test_the_speed_on_another_processor_is_no_headline(
    target: str, machine: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe.model_copy(update={"quantize": validated(QuantizeSettings, {"target": target}, where="test")})
    slow = verification(noise=0.01, speed=0.4, gates=Gates())
    for here, speed in ((machine, False), ({"ort-arm64": "arm64", "ort-x86": "AMD64"}[target], True)):
        monkeypatch.setattr("platform.machine", lambda here=here: here)
        assert ("speed" in headline(slow, asked)) is speed
        assert any("slower than" in line for line in remarks(slow, asked)) is speed
        assert any(f"was measured on onnxruntime ({here})" in line for line in remarks(slow, asked)) is not speed


def test_a_model_meant_for_tensorrt_that_ran_elsewhere_says_so(recipe: Recipe) -> None:
    here = verification(noise=0.01, speed=1.2, gates=Gates())
    asked = recipe.model_copy(update={"quantize": QuantizeSettings(target="tensorrt")})
    slow = verification(noise=0.01, speed=0.4, gates=Gates())
    (remark,) = [line for line in remarks(slow, asked) if "0.40x" in line or "slower" in line]
    assert "meant for TensorRT, and was measured on onnxruntime" in remark
    assert "0.40x the speed of simplified, which says nothing of TensorRT: build the engine where it runs" in remark
    assert "speed" not in headline(slow, asked) and "0.40x the speed of simplified" in headline(slow, recipe)
    assert not any("TensorRT" in line for line in remarks(here, recipe))
    engine = replace(here, variants=(*here.variants, replace(here.variants[-1], name="engine", runtime="tensorrt")))
    assert not any("build the engine" in line for line in remarks(engine, asked))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    content = load_recipe(ROOT / "recipes" / "quickstart.yaml").model_dump(mode="json")
    content["benchmark"]["seconds"] = 0.05
    content["quantize"]["preset"] = "fast"
    content["data"]["verification"]["limit"] = 120
    return parse_recipe(content, where="test")


def with_gates(recipe: Recipe, **gates: object) -> Recipe:
    return recipe.model_copy(update={"gates": Gates.model_validate({"on_failure": "fallback", **gates})})


def test_int8_that_fails_its_accuracy_gate_ends_in_a_float_model_and_the_report_tells_why(
    recipe: Recipe, tmp_path: Path
) -> None:
    strict = with_gates(recipe, min_cosine=0.9999999)
    result = run(strict, tmp_path)
    assert result.verification is not None
    assert result.verification.passed, result.verification.failures()
    assert [variant.name for variant in result.verification.variants] == ["pytorch", "onnx", "simplified"]
    assert not (tmp_path / "models" / "int8.onnx").exists()
    attempts = json.loads((tmp_path / "report.json").read_text())["attempts"]
    assert [entry["kept"] for entry in attempts] == [False, False, True]
    assert all("min_cosine" in entry["reasons"][0] for entry in attempts[:2])
    story = (tmp_path / "report.md").read_text()
    assert "How it came to this model" in story
    assert "1. int8 linear layers: rejected (gate min_cosine: limit 1, is 0.99" in story
    again = run(strict, tmp_path)
    assert again.executed == ()
    assert again.verification is not None
    assert again.verification.passed


def test_int8_that_fails_its_speed_gate_is_replaced_by_what_it_was_to_replace(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = recipe_run.measure_latency

    def slow_int8(*arguments: Any) -> Any:
        """Make int8 measure twice as slow as the float variant, as it is on processors without int8 instructions."""
        result = measure(*arguments)
        content = json.loads(result.path.read_text())
        variants = content["variants"]
        if "int8" in variants:
            variants["int8"] = [
                {**entry, "p50_ms": 2 * other["p50_ms"]}
                for entry, other in zip(variants["int8"], variants["simplified"], strict=True)
            ]
        result.path.write_text(json.dumps(content))
        return result

    monkeypatch.setattr(recipe_run, "measure_latency", slow_int8)
    result = run(with_gates(recipe, min_speedup=1.0), tmp_path)
    assert result.verification is not None
    assert result.verification.passed, result.verification.failures()
    assert result.verification.variants[-1].name == "simplified"
    attempts = json.loads((tmp_path / "report.json").read_text())["attempts"]
    assert "gate min_speedup: limit 1, is 0.5" in attempts[0]["reasons"][0]
    assert "passed over" in attempts[1]["reasons"][0]
    assert attempts[2]["kept"]


def test_on_failure_fail_keeps_the_model_and_rejects_it(recipe: Recipe, tmp_path: Path) -> None:
    failing = with_gates(recipe, min_cosine=0.9999999, on_failure="fail")
    result = run(failing, tmp_path)
    assert result.verification is not None
    assert not result.verification.passed
    assert result.verification.variants[-1].name == "int8"
    assert json.loads((tmp_path / "report.json").read_text())["attempts"] == []


def test_the_precision_that_runs_is_measured_and_gated(recipe: Recipe, tmp_path: Path) -> None:
    asked = with_gates(recipe, min_actual_precision=0.8, on_failure="fail")
    result = run(asked, tmp_path)
    assert result.verification is not None
    gate = next(gate for gate in result.verification.gates if gate.gate == "min_actual_precision")
    assert gate.value is not None
    assert 0.8 <= gate.value < 1.0  # patch embedding and head stay in float
    assert "onnxruntime executed int8" in gate.note
    simplified = next(variant for variant in result.verification.variants if variant.name == "simplified")
    assert simplified.executed == {"float32": 1.0}
