"""How numbers are written in reports, the same in HTML and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitexport.verification.gates import GATES

__all__ = ["FILTERS"]

MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits, small and large ones as powers of ten."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{digits}g}"


def fixed(value: float | None, digits: int = 2) -> str:
    """Write a number with so many decimals."""
    return MISSING if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Write a fraction as a percentage; only exactly everything is 100 %."""
    if value is None:
        return MISSING
    text = f"{100 * value:.{digits}f}"
    if value < 1 and float(text) == 100:
        text = f"{100 * value:.{digits + 2}f}"
    return f"{text} %"


def size(value: int | None) -> str:
    """Write a number of bytes."""
    if value is None:
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value} B"


def decibel(value: float | None, max_abs: float | None = None) -> str:
    """Write a signal-to-noise ratio; equal outputs have no noise at all."""
    if value is None:
        return "exact" if max_abs == 0 else MISSING
    return f"{value:.1f} dB"


def gate_name(key: str) -> str:
    """Name a gate in words."""
    return GATES[key].title


def gate_limit(gate: dict[str, Any]) -> str:
    """Say what a gate asks for."""
    return GATES[gate["gate"]].limit.format(f"{gate['limit']:g}")


def gate_status(gate: dict[str, Any]) -> str:
    """Say how a gate ended; one that was not measured never passed."""
    if gate["value"] is None:
        return "not measured"
    if gate["undecided"]:
        return "undecided, passed" if gate["passed"] else "undecided, failed"
    return "passed" if gate["passed"] else "failed"


def seconds(value: float) -> str:
    """Write a duration."""
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def cell(text: object) -> str:
    """Make text safe inside a Markdown table cell."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def transformed(entry: Mapping[str, Any]) -> str:
    """Write the range of a quantized input after its transforms; one that stays float gets none."""
    ends = entry.get("transformed")
    return MISSING if ends is None or entry["kept_float"] else f"{number(ends[0])} to {number(ends[1])}"


def rotation(entry: Mapping[str, Any]) -> str:
    """Write in blocks of how many channels a quantized input is rotated; one that stays float is not."""
    return MISSING if entry["kept_float"] else str(entry.get("rotation") or MISSING)


def main_output(parity: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the output that tables show: ``logits`` where there is one, else the first; None without any."""
    outputs = parity["outputs"] if parity else []
    return next((output for output in outputs if output["name"] == "logits"), next(iter(outputs), None))


FILTERS = {
    "cell": cell,
    "main_output": main_output,
    "transformed": transformed,
    "rotation": rotation,
    "number": number,
    "fixed": fixed,
    "percent": percent,
    "size": size,
    "decibel": decibel,
    "gate_name": gate_name,
    "gate_limit": gate_limit,
    "gate_status": gate_status,
    "seconds": seconds,
}
