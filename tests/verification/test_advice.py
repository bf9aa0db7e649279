"""After a rejection: what to try, the most promising first, from what failed and what the recipe has not used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.pipeline.test_fallback import verification
from vitexport.recipe.load import parse_recipe, validated
from vitexport.recipe.settings import Budget, Gates, QuantizeSettings, Recipe
from vitexport.verification.advice import accuracy_budget, advise, worst_layers
from vitexport.verification.result import Check

WORST = ("blocks.8.proj", "blocks.9.proj", "blocks.10.fc2", "blocks.8.fc2")
BUDGET = "quantize.budget.min_agreement=0.99"
FALLBACK = "gates.on_failure=fallback"
EXCLUDE = "quantize.exclude=[blocks.8.proj, blocks.9.proj, blocks.10.fc2]"


def recipe(gates: dict[str, Any], **quantize: Any) -> Recipe:
    content = {"name": "m", "model": {"source": "nowhere"}, "data": {"verification": {"images": "nowhere"}}}
    return parse_recipe({**content, "gates": gates, "quantize": quantize}, where="test")


def said(gates: dict[str, Any], *, noise: float = 1.0, speed: float = 1.2, **quantize: Any) -> tuple[str, ...]:
    asked = recipe(gates, **quantize)
    return advise(verification(noise=noise, speed=speed, gates=asked.gates), asked, WORST)


def in_order(lines: tuple[str, ...], *parts: str) -> None:
    """Check that each line holds its part, and that there are no other lines."""
    assert len(lines) == len(parts), lines
    for line, part in zip(lines, parts, strict=True):
        assert part in line, (part, lines)


def test_a_run_that_passed_needs_no_advice() -> None:
    assert said({"min_agreement": 0.5}, noise=0.01) == ()


def test_lost_accuracy_is_searched_for_first_and_layers_are_named() -> None:
    in_order(said({"min_agreement": 0.99}), BUDGET, FALLBACK, EXCLUDE, "quantize.target=tensorrt")


def test_a_tolerance_that_is_missed_is_lost_accuracy_too() -> None:
    asked = recipe({})
    found = verification(noise=1.0, speed=1.2, gates=asked.gates)
    *before, last = found.variants
    assert last.parity is not None
    last = replace(last, parity=replace(last.parity, failures=("logits: agreement 0.5 is below 0.9",)))
    lines = advise(replace(found, variants=(*before, last)), asked)
    in_order(lines, "quantize.budget.max_top1_drop=1", FALLBACK, "quantize.precision=fp16")


def test_what_the_recipe_switched_off_or_on_comes_before() -> None:
    in_order(
        said({"min_agreement": 0.99}, preset="fast", rounding="nearest", attention="int8", target="tensorrt"),
        "quantize.preset=default",
        "quantize.rounding=learned (it is nearest)",
        "quantize.attention=float",
        BUDGET,
        FALLBACK,
        EXCLUDE,
        "quantize.precision=fp16",
    )


def test_what_is_used_already_is_not_proposed_and_exclusions_are_kept() -> None:
    lines = said({"min_agreement": 0.99, "on_failure": "fallback"}, budget={"min_sqnr_db": 10}, exclude=["0.fc1"])
    in_order(lines, "quantize.exclude=[0.fc1, blocks.8.proj, blocks.9.proj, blocks.10.fc2]", "quantize.precision=fp16")


def test_an_undecided_figure_asks_for_the_images_that_decide_it() -> None:
    gates = Gates(min_agreement=0.999)
    found = verification(noise=0.01, speed=1.2, gates=gates)  # 200 images
    (gate,) = found.gates
    assert gate.undecided and gate.images_needed is not None and gate.images_needed > 200
    lines = advise(found, recipe({"min_agreement": 0.999}), WORST)
    assert f"about {gate.images_needed:,} would decide min_agreement" in lines[3]
    assert "gates.on_undecided=pass" in lines[3]
    at_its_limit = replace(found, gates=(replace(gate, images_needed=None),))
    assert any("no number of images one could label" in line for line in advise(at_its_limit, recipe({})))


def test_a_gain_that_is_missed_asks_for_less_in_float_and_never_for_more() -> None:
    lines = said({"min_speedup": 2.0}, noise=0.0001, exclude=["fc2"], budget={"min_sqnr_db": 30})
    in_order(lines, "without quantize.exclude and quantize.budget", "bench BUNDLE --tune", FALLBACK)
    lines = said({"min_speedup": 2.0, "on_failure": "fallback"}, noise=0.0001, target="tensorrt")
    in_order(lines, "`vitexport build-engine BUNDLE`", "Ask for less (min_speedup)")


def test_a_gate_that_could_not_be_judged_asks_for_what_it_needs() -> None:
    (line,) = said({"max_top1_drop": 1.0}, noise=0.0001)
    assert line.startswith("max_top1_drop could not be judged, needs labelled verification images")


def test_what_is_wrong_before_quantizing_is_put_right_first() -> None:
    asked = recipe({"min_agreement": 0.99})
    found = verification(noise=1.0, speed=1.2, gates=asked.gates)
    check = Check("labels fit the model", "pytorch", False, "every label is shifted by one")
    (line,) = advise(replace(found, checks=(check,)), asked)
    assert line.endswith("(checked: labels fit the model): every label is shifted by one")
    broken = verification(noise=1.0, speed=1.2, gates=asked.gates, float_noise=1.0)
    (line,) = advise(broken, asked)
    assert line.startswith("simplified is float32 and differs already")


def test_a_variant_that_was_not_run_is_judged_elsewhere() -> None:
    asked = recipe({}, precision="bf16", target="tensorrt")
    found = verification(noise=0.0, speed=1.2, gates=asked.gates)
    *before, last = found.variants
    last = replace(last, name="bf16", parity=None, not_run="no kernel")
    in_order(
        advise(replace(found, variants=(*before, last)), asked),
        "`vitexport build-engine BUNDLE --variant bf16`",
        "quantize.precision=int8",
    )


@pytest.mark.parametrize("gates", [{"min_agreement": 0.99}, {"max_top1_drop": 0.5, "min_agreement": 0.98}, {}])
def test_every_setting_that_is_proposed_exists(gates: dict[str, Any]) -> None:
    for line in said({**gates, "min_cosine": 0.99}, preset="fast", rounding="nearest", method="max", rotate="none"):
        for setting in line.split("--set ")[1:]:
            key, _, value = setting.split("=")[0].strip("'"), "", setting
            stage, *names = key.split(".")
            model: Any = {"quantize": QuantizeSettings, "gates": Gates}[stage]
            if names[0] == "budget":
                model, names = Budget, names[1:]
            assert names[0] in model.model_fields, value


def test_a_budget_asks_for_what_the_gates_ask_for() -> None:
    assert accuracy_budget(Gates(max_top1_drop=0.5)) == Budget(max_top1_drop=0.5)
    assert accuracy_budget(validated(Gates, {"min_cosine": 0.9}, where="test")) == Budget(max_top1_drop=1.0)


def test_the_worst_layers_are_those_that_can_stay_in_float() -> None:
    culprits = [{"layer": "b.8.proj", "role": "proj"}, {"layer": "b.8", "role": "residual"}]
    errors = {"variants": {"int8": {"culprits": culprits}}}
    assert worst_layers(errors, "int8") == ("b.8.proj",)
    assert worst_layers(errors, "fp8") == worst_layers({}, "int8") == ()
