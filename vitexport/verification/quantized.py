"""What a quantized model's details say, in sentences: how near it is to float32, and what stayed in float and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["budget_sentence", "held_out_sentence", "kept_float", "kept_float_sentence", "measured_sentence", "told"]

_NAMED = 6
"""Groups named one by one; the details name all."""

_REASONS = 8
"""Reasons given one by one."""

_EQUAL_DB = 200.0
"""Above this SQNR outputs are called equal: float64 itself ends near 300 dB."""

Details = Mapping[str, Any]


def told(details: Details) -> dict[str, str]:
    """Return the sentences there are about a quantized model, by what they are about; what was measured comes last.

    Args:
        details: Of the quantize stage's result.
    """
    mixed = details.get("mixed_precision")
    found = {
        "kept_in_float": kept_float_sentence(details),
        "budget": "" if mixed is None else budget_sentence(mixed),
        "measured": measured_sentence(details),
    }
    return {about: sentence for about, sentence in found.items() if sentence}


def measured_sentence(details: Details) -> str:
    """Say how near the model is to float32 on images that did not calibrate it, or why nobody knows.

    Args:
        details: Of the quantize stage's result; those of older bundles hold no measurement, and the sentence is empty.
    """
    quality = details.get("quality")
    if quality is None:
        reason = details.get("not_measured", "").partition("\n")[0].rstrip(".")
        return f"not here: {reason}" if reason else ""
    return f"{_quality(quality)} on {quality['images']} calibration images held out"


def held_out_sentence(details: Details) -> str:
    """Say how many images were fitted to and how many were held out; empty where the details do not tell."""
    images = details.get("images")
    if images is None:
        return ""
    return (
        f"{images['calibrating']} calibration images chose every range; {images['held_out']} others were held out: "
        "at most they chose what stays in float, and they measured the result"
    )


def kept_float(details: Details) -> list[tuple[tuple[str, ...], str]]:
    """Return what stayed in float and why, groups of the same reason together.

    Args:
        details: Of the quantize stage's result.
    """
    by_reason: dict[str, list[str]] = {}
    for group, reason in details.get("kept_float_reasons", {}).items():
        by_reason.setdefault(reason, []).append(group)
    return [(tuple(groups), reason) for reason, groups in by_reason.items()]


def kept_float_sentence(details: Details) -> str:
    """Say what stayed in float and why in one line; empty where nothing did."""
    reasons = kept_float(details)
    parts = [f"{_named(groups)} ({reason})" for groups, reason in reasons[:_REASONS]]
    more = sum(len(groups) for groups, _ in reasons[_REASONS:])
    return ", ".join([*parts, *([f"and {more} more"] if more else [])])


def budget_sentence(mixed: Mapping[str, Any]) -> str:
    """Say what a search for a budget left in float, and what that changed.

    Args:
        mixed: ``mixed_precision`` of a quantized model's details.
    """
    kept, before, after = mixed["kept_float"], mixed["before"], mixed["after"]
    what = f"kept in float: {_named(kept)}" if kept else "nothing had to stay in float"
    change = f"SQNR {before['sqnr_db']:.1f} to {after['sqnr_db']:.1f} dB"
    if after["agreement"] is not None:
        change += f", agreement {_percent(before['agreement'])} to {_percent(after['agreement'])} %"
    return f"{what}; {change} on {after['images']} calibration images held out"


def _quality(quality: Mapping[str, Any]) -> str:
    low, high = quality["sqnr_interval_db"]
    found = f"SQNR {quality['sqnr_db']:.1f} dB (95 % interval {low:.1f} to {high:.1f})"
    if quality["sqnr_db"] > _EQUAL_DB:
        found = "the same outputs"
    if quality["agreement"] is not None:
        low, high = quality["agreement_interval"]
        found += f", agreement {_percent(quality['agreement'])} % ({100 * low:.0f} to {100 * high:.0f})"
    return found


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _named(groups: Sequence[str]) -> str:
    more = len(groups) - _NAMED
    return ", ".join(groups) if more <= 0 else f"{', '.join(groups[:_NAMED])} and {more} more"
