"""What a quantized model's details say, in sentences."""

from __future__ import annotations

from typing import Any

from vitexport.verification.quantized import budget_sentence, held_out_sentence, kept_float_sentence, told

QUALITY: dict[str, Any] = {
    "images": 32,
    "sqnr_db": 27.86,
    "sqnr_interval_db": (27.11, 28.6),
    "agreement": 0.96875,
    "agreement_interval": (0.843, 0.994),
}
FEATURES = {**QUALITY, "agreement": None, "agreement_interval": None}


def test_what_was_measured_comes_last_with_its_intervals() -> None:
    found = told({"quality": QUALITY, "kept_float_reasons": {"11.proj": "computes one token"}})
    assert list(found) == ["kept_in_float", "measured"]
    assert found["measured"] == (
        "SQNR 27.9 dB (95 % interval 27.1 to 28.6), agreement 96.9 % (84 to 99) on 32 calibration images held out"
    )


def test_features_have_no_agreement_equal_outputs_no_noise_and_old_details_nothing() -> None:
    assert told({"quality": FEATURES})["measured"] == (
        "SQNR 27.9 dB (95 % interval 27.1 to 28.6) on 32 calibration images held out"
    )
    assert told({"quality": {**FEATURES, "sqnr_db": 330.0}})["measured"].startswith("the same outputs on 32")
    assert told({}) == {}
    assert held_out_sentence({}) == ""


def test_what_could_not_be_measured_says_why() -> None:
    assert told({"quality": None, "not_measured": "no kernel of bfloat16.\nRun it elsewhere."}) == {
        "measured": "not here: no kernel of bfloat16"
    }


def test_groups_of_one_reason_stand_together_and_long_lists_are_cut() -> None:
    reasons = {"11.proj": "computes one token", "11.fc1": "computes one token", "7.fc2": "massive activation"}
    sentence = kept_float_sentence({"kept_float_reasons": reasons})
    assert sentence == "11.proj, 11.fc1 (computes one token), 7.fc2 (massive activation)"
    many = {f"{block}.fc2": "excluded by `fc2`" for block in range(12)}
    several = kept_float_sentence({"kept_float_reasons": many})
    assert several == "0.fc2, 1.fc2, 2.fc2, 3.fc2, 4.fc2, 5.fc2 and 6 more (excluded by `fc2`)"
    different = {f"{block}.fc2": f"leaves {block} dB" for block in range(12)}
    assert kept_float_sentence({"kept_float_reasons": different}).endswith("7.fc2 (leaves 7 dB), and 4 more")


def test_a_budget_says_what_it_changed_with_and_without_classes() -> None:
    mixed = {"kept_float": ("0.fc2",), "before": FEATURES, "after": {**FEATURES, "sqnr_db": 30.0}}
    assert budget_sentence(mixed) == "kept in float: 0.fc2; SQNR 27.9 to 30.0 dB on 32 calibration images held out"
    same = {"kept_float": (), "before": QUALITY, "after": QUALITY}
    assert budget_sentence(same).startswith(
        "nothing had to stay in float; SQNR 27.9 to 27.9 dB, agreement 96.9 to 96.9 %"
    )
