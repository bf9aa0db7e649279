"""The gates of a recipe: each is one entry of :data:`GATES`, and one limit in the recipe's settings.

A gate that could not be measured says so and never passes. A figure of a sample that misses its limit by less than its
95 % interval is undecided: more images would tell, and the recipe says what it means until then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vitexport.intervals import Z95, correlation, images_to_decide, paired_difference, proportion
from vitexport.recipe.settings import Gates
from vitexport.scoring import Head, Scoring
from vitexport.verification.result import GateResult, VariantResult

__all__ = ["GATES", "Gate", "judge_gates", "not_set", "of_outputs"]


@dataclass(frozen=True)
class Sides:
    """What a gate looks at: the last variant, PyTorch, and the baseline (None where the bundle has none)."""

    last: VariantResult
    reference: VariantResult
    base: VariantResult | None


@dataclass(frozen=True)
class Measured:
    """What a gate found.

    Attributes:
        value: The figure, or None.
        note: Why there is none, or how it came about.
        images: How many images it is the figure of; 0 where it is of none, and certain.
        interval: Its 95 % interval, were it measured on so many times as many images; None where it is certain, or
            where nobody knows.
        digits: How the interval is written.
    """

    value: float | None
    note: str = ""
    images: int = 0
    interval: Callable[[float], tuple[float, float]] | None = None
    digits: str = ".4g"


@dataclass(frozen=True)
class Gate:
    """How one limit of a recipe is measured and spoken of.

    Attributes:
        title: Its name in a report.
        limit: What it asks for, with a place for the number.
        measure: Value of what is looked at. The limit is an upper one where the setting's name starts with ``max_``,
            else a lower one.
        of_outputs: Whether it judges outputs or what computes them, so that it holds on every machine; others, like
            speed, belong to the machine that made the bundle.
        of_answers: Whether it judges the answers themselves, so that answers rejected once are rejected everywhere.
        asks_gain: Whether it asks for a gain, which keeping more layers in float can only lower.
        suits: Whether it can judge a model whose answers are read so.
    """

    title: str
    limit: str
    measure: Callable[[Sides], Measured]
    of_outputs: bool = False
    of_answers: bool = False
    asks_gain: bool = False
    suits: Callable[[Head], bool] = lambda head: True


def judge_gates(gates: Gates, variants: Sequence[VariantResult]) -> tuple[GateResult, ...]:
    """Judge the last variant by every limit that is set.

    Args:
        gates: The limits.
        variants: PyTorch first.
    """
    limits = gates.limits()
    base = next((variant for variant in variants if variant.name == gates.baseline), None)
    sides = Sides(variants[-1], variants[0], base)
    return tuple(_judge(name, limit, sides, gates) for name, limit in limits.items() if limit is not None)


def not_set(gates: Gates, head: Head) -> tuple[str, ...]:
    """Return the names of the limits that could judge a model and are not set."""
    return tuple(name for name, limit in gates.limits().items() if limit is None and GATES[name].suits(head))


def of_outputs(gates: Gates) -> Gates:
    """Return only the limits that hold on every machine, for a sample of the images that were judged before.

    A sample says less than all of them, so that only what it does decide counts against a model.
    """
    limits = {name: None for name in gates.limits() if not GATES[name].of_outputs}
    return gates.model_copy(update={**limits, "on_undecided": "pass"})


def _judge(name: str, limit: float, sides: Sides, gates: Gates) -> GateResult:
    found = GATES[name].measure(sides)
    if found.value is None:
        note = f"'{sides.last.name}' was not run here" if sides.last.not_run else found.note
        note = note or f"there is no variant '{gates.baseline}' to compare with"
        return GateResult(name, limit, None, passed=False, note=note)
    holds = found.value <= limit if name.startswith("max_") else found.value >= limit
    if found.interval is None or not math.isfinite(found.value):
        return GateResult(name, limit, found.value, passed=holds, note=found.note)
    low, high = found.interval(1.0)
    straddles = low <= limit <= high
    note = f"95 % interval {low:{found.digits}} to {high:{found.digits}}{found.note}, {found.images} images"
    needed = images_to_decide(found.interval, limit, found.images) if straddles else None
    if straddles:
        tell = "no number of images like these" if needed is None else f"about {needed:,} images"
        note += f"; too few to tell it from the limit, which {tell} would"
    passed = holds or (straddles and gates.on_undecided == "pass")
    undecided = straddles and not holds
    return GateResult(name, limit, found.value, passed, note, undecided, (low, high), needed)


def _top1_drop(sides: Sides) -> Measured:
    found = sides.last.difference
    if found is None:
        return Measured(None, "needs labelled verification images and a head with one class of several")
    lost, gained, images = found.only_reference, found.only_candidate, found.images

    def interval(times: float) -> tuple[float, float]:
        low, high = paired_difference(lost * times, gained * times, images * times)
        return 100 * low, 100 * high

    return Measured(found.drop_points, f" points, McNemar p = {found.p_value:.2g}", images, interval, "+.2f")


def _map_drop(sides: Sides) -> Measured:
    found = sides.last.map_difference
    if found is None:
        return Measured(None, "needs labelled verification images and a head with several labels at once")
    return Measured(found.drop_points, " points of mAP", found.images, found.interval_points, "+.2f")


def _mae(sides: Sides) -> Measured:
    parity = sides.last.parity
    main = parity.main if parity else None
    if parity is None or main is None or main.correlation is None:
        return Measured(None, "needs the values of a regression")
    images, mean, error = parity.images, main.mean_abs, main.mean_abs_standard_error or 0.0

    def interval(times: float) -> tuple[float, float]:
        half = Z95 * error / times**0.5
        return max(0.0, mean - half), mean + half

    return Measured(mean, "", images, interval, ".3g")


def _correlation(sides: Sides) -> Measured:
    parity = sides.last.parity
    main = parity.main if parity else None
    if parity is None or main is None or main.correlation is None:
        return Measured(None, "needs the values of a regression")
    images, value = parity.images, main.correlation
    return Measured(value, "", images, lambda times: correlation(value, images * times), ".4f")


def _agreement(sides: Sides) -> Measured:
    parity = sides.last.parity
    if parity is None or parity.main is None or parity.main.agreement is None:
        return Measured(None, "needs logits that decide a class or labels")
    fraction, images = parity.main.agreement, parity.images
    return Measured(fraction, "", images, lambda times: proportion(fraction, round(images * times)))


def _cosine(sides: Sides) -> Measured:
    main = sides.last.parity.main if sides.last.parity else None
    if main is None:
        return Measured(None, "outputs could not be compared")
    return Measured(main.min_cosine, "" if main.min_cosine is not None else "one number per image has no direction")


def _speedup(sides: Sides) -> Measured:
    last, base = sides.last, sides.base
    if base is None:
        return Measured(None)
    if base.name == last.name:
        return Measured(1.0, "nothing was replaced")
    if not base.latency or not last.latency:
        return Measured(None, f"needs a benchmark of '{last.name}' and '{base.name}'")
    if base.runtime != last.runtime:
        return Measured(None, f"'{base.name}' ran on {base.runtime}, '{last.name}' on {last.runtime}")
    ratio = base.latency[0].p50_ms / last.latency[0].p50_ms
    return Measured(ratio, f"against '{base.name}', batch {last.latency[0].batch}")


def _size_ratio(sides: Sides) -> Measured:
    last, base = sides.last, sides.base
    if base is None:
        return Measured(None)
    if base.name == last.name:
        return Measured(1.0, "nothing was replaced")
    if not base.bytes or not last.bytes:
        return Measured(None, f"needs the file sizes of '{last.name}' and '{base.name}'")
    return Measured(last.bytes / base.bytes, f"against '{base.name}'")


def _actual_precision(sides: Sides) -> Measured:
    last = sides.last
    if last.executed is None:
        return Measured(None, f"{last.runtime} was not profiled on '{last.name}'")
    parts = sorted(last.executed.items(), key=lambda part: -part[1])
    found = ", ".join(f"{name} {fraction:.1%}" for name, fraction in parts)
    return Measured(last.executed.get(last.precision, 0.0), f"{last.runtime} executed {found} of the weighted work")


def _classifies_by(scoring: Scoring) -> Callable[[Head], bool]:
    return lambda head: head.task == "classify" and head.scoring == scoring


def _decides(head: Head) -> bool:
    return head.task == "segment" or (head.task == "classify" and head.scoring != "none")


GATES: Mapping[str, Gate] = {
    "max_top1_drop": Gate(
        "Top-1 drop", "at most {} points", _top1_drop, of_answers=True, suits=_classifies_by("softmax")
    ),
    "max_map_drop": Gate("mAP drop", "at most {} points", _map_drop, of_answers=True, suits=_classifies_by("sigmoid")),
    "max_mae": Gate(
        "Mean difference from PyTorch",
        "at most {}",
        _mae,
        of_outputs=True,
        of_answers=True,
        suits=_classifies_by("none"),
    ),
    "min_correlation": Gate(
        "Correlation with PyTorch",
        "at least {}",
        _correlation,
        of_outputs=True,
        of_answers=True,
        suits=_classifies_by("none"),
    ),
    "min_agreement": Gate(
        "Agreement with PyTorch", "at least {}", _agreement, of_outputs=True, of_answers=True, suits=_decides
    ),
    "min_cosine": Gate("Cosine with PyTorch", "at least {}", _cosine, of_outputs=True, of_answers=True),
    "min_speedup": Gate("Speed-up", "at least {}x", _speedup, asks_gain=True),
    "max_size_ratio": Gate("Size ratio", "at most {}", _size_ratio, asks_gain=True),
    "min_actual_precision": Gate(
        "Work in the asked precision", "at least {}", _actual_precision, of_outputs=True, asks_gain=True
    ),
}
"""Name of the setting to the gate."""
