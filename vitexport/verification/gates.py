"""The gates of a recipe: each is one entry of :data:`GATES`, and one limit in the recipe's settings.

A gate that could not be measured says so and never passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vitexport.recipe.settings import Gates
from vitexport.verification.result import GateResult, VariantResult

__all__ = ["GATES", "Gate", "judge_gates", "of_outputs"]

Measured = tuple[float | None, str]
"""A value, or None, and a note: why there is none, or how sure it is."""


@dataclass(frozen=True)
class Gate:
    """How one limit of a recipe is measured and spoken of.

    Attributes:
        title: Its name in a report.
        limit: What it asks for, with a place for the number.
        measure: Value from the last variant and the baseline (None where the bundle has none of that name). The limit
            is an upper one where the setting's name starts with ``max_``, else a lower one.
        of_outputs: Whether it judges outputs or what computes them, so that it holds on every machine; others, like
            speed, belong to the machine that made the bundle.
        asks_gain: Whether it asks for a gain, which keeping more layers in float can only lower.
    """

    title: str
    limit: str
    measure: Callable[[VariantResult, VariantResult | None], Measured]
    of_outputs: bool = False
    asks_gain: bool = False


def judge_gates(gates: Gates, variants: Sequence[VariantResult]) -> tuple[tuple[GateResult, ...], tuple[str, ...]]:
    """Judge the last variant by every limit that is set.

    Returns:
        The results, and the names of the limits that are not set.
    """
    limits = gates.limits()
    last, base = variants[-1], next((variant for variant in variants if variant.name == gates.baseline), None)
    results = [_judge(name, limit, last, base, gates.baseline) for name, limit in limits.items() if limit is not None]
    return tuple(results), tuple(name for name, limit in limits.items() if limit is None)


def of_outputs(gates: Gates) -> Gates:
    """Return only the limits that hold on every machine."""
    limits = {name: limit for name, limit in gates.limits().items() if GATES[name].of_outputs}
    return Gates.model_validate(limits)


def _judge(name: str, limit: float, last: VariantResult, base: VariantResult | None, baseline: str) -> GateResult:
    value, note = GATES[name].measure(last, base)
    if value is None and last.not_run:
        note = f"'{last.name}' was not run here"
    if value is None:
        note = note or f"there is no variant '{baseline}' to compare with"
        return GateResult(name, limit, None, passed=False, note=note)
    passed = value <= limit if name.startswith("max_") else value >= limit
    return GateResult(name, limit, value, passed=passed, note=note)


def _top1_drop(last: VariantResult, _: VariantResult | None) -> Measured:
    if last.difference is None:
        return None, "needs labelled verification images and logits"
    low, high = last.difference.interval_points
    return (
        last.difference.drop_points,
        f"95 % interval {low:+.2f} to {high:+.2f} points, McNemar p = {last.difference.p_value:.2g}, "
        f"{last.difference.images} images",
    )


def _agreement(last: VariantResult, _: VariantResult | None) -> Measured:
    main = last.parity.main if last.parity else None
    return (None, "needs logits") if main is None or main.agreement is None else (main.agreement, "")


def _cosine(last: VariantResult, _: VariantResult | None) -> Measured:
    main = last.parity.main if last.parity else None
    return (None, "outputs could not be compared") if main is None else (main.min_cosine, "")


def _speedup(last: VariantResult, base: VariantResult | None) -> Measured:
    if base is None:
        return None, ""
    if base.name == last.name:
        return 1.0, "nothing was replaced"
    if not base.latency or not last.latency:
        return None, f"needs a benchmark of '{last.name}' and '{base.name}'"
    if base.runtime != last.runtime:
        return None, f"'{base.name}' ran on {base.runtime}, '{last.name}' on {last.runtime}"
    return base.latency[0].p50_ms / last.latency[0].p50_ms, f"against '{base.name}', batch {last.latency[0].batch}"


def _size_ratio(last: VariantResult, base: VariantResult | None) -> Measured:
    if base is None:
        return None, ""
    if base.name == last.name:
        return 1.0, "nothing was replaced"
    if not base.bytes or not last.bytes:
        return None, f"needs the file sizes of '{last.name}' and '{base.name}'"
    return last.bytes / base.bytes, f"against '{base.name}'"


def _actual_precision(last: VariantResult, _: VariantResult | None) -> Measured:
    if last.executed is None:
        return None, f"{last.runtime} was not profiled on '{last.name}'"
    parts = sorted(last.executed.items(), key=lambda part: -part[1])
    found = ", ".join(f"{name} {fraction:.1%}" for name, fraction in parts)
    return last.executed.get(last.precision, 0.0), f"{last.runtime} executed {found} of the weighted work"


GATES: Mapping[str, Gate] = {
    "max_top1_drop": Gate("Top-1 drop", "at most {} points", _top1_drop),
    "min_agreement": Gate("Agreement with PyTorch", "at least {}", _agreement, of_outputs=True),
    "min_cosine": Gate("Cosine with PyTorch", "at least {}", _cosine, of_outputs=True),
    "min_speedup": Gate("Speed-up", "at least {}x", _speedup, asks_gain=True),
    "max_size_ratio": Gate("Size ratio", "at most {}", _size_ratio, asks_gain=True),
    "min_actual_precision": Gate(
        "Work in the asked precision", "at least {}", _actual_precision, of_outputs=True, asks_gain=True
    ),
}
"""Name of the setting to the gate."""
