"""The ladder ``pytorch -> onnx -> simplified -> quantized -> engine``: each rung judged against PyTorch and its parent.

Pure: recordings, sizes and latencies go in, verdicts come out. A gate that could not be measured says so and never
passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitexport.bench.latency import Latency
from vitexport.bundle.recording import Recording
from vitexport.recipe.settings import Gates, Tolerance
from vitexport.tensors import Array
from vitexport.verify.accuracy import Accuracy, PairedDifference, accuracy, compare_top1
from vitexport.verify.parity import ParityReport, class_scores, compare

__all__ = ["Check", "GateResult", "Ladder", "Rung", "RungInput", "climb"]


@dataclass(frozen=True)
class RungInput:
    """What is known about a rung before it is judged.

    Attributes:
        name: Name of the rung, e.g. ``int8``.
        precision: What its body computes in.
        recording: Its answers.
        tolerance: What it must reach.
        same_inputs: Whether it takes byte-equal input tensors to the reference (a uint8 graph does not).
        bytes: File size with companions; None for the reference.
        latency: By batch size; empty when not measured.
        executed: Share of the weighted multiply-accumulates the runtime executed in each precision, by precision; None
            when not measured.
    """

    name: str
    precision: str
    recording: Recording
    tolerance: Tolerance
    same_inputs: bool = True
    bytes: int | None = None
    latency: tuple[Latency, ...] = ()
    executed: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Rung:
    """A judged rung.

    Attributes:
        name: Name of the rung.
        runtime: Runtime that answered.
        precision: What its body computes in.
        parity: Against PyTorch; None for PyTorch itself.
        step: Against the rung before, without limits: who lost what.
        accuracy: On the labelled images; None without labels.
        difference: Paired top-1 difference with PyTorch; None without labels.
        bytes: File size with companions.
        latency: By batch size.
        executed: Share of the weighted multiply-accumulates executed in each precision; None when not measured.
    """

    name: str
    runtime: str
    precision: str
    parity: ParityReport | None
    step: ParityReport | None
    accuracy: Accuracy | None
    difference: PairedDifference | None
    bytes: int | None
    latency: tuple[Latency, ...]
    executed: Mapping[str, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether the rung agrees with PyTorch as asked; the reference itself always does."""
        return self.parity is None or self.parity.passed


@dataclass(frozen=True)
class GateResult:
    """One gate of the recipe.

    Attributes:
        gate: Name of the setting, e.g. ``max_top1_drop``.
        limit: What was asked.
        value: What was measured; None when it could not be.
        passed: The verdict; False when it could not be measured.
        note: Why it could not be measured, or how sure the value is.
    """

    gate: str
    limit: float
    value: float | None
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Check:
    """A check of what surrounds the models: their labels, the pixels they are fed.

    Attributes:
        name: What was checked, in words.
        rung: The rung whose numbers it puts in doubt.
        passed: The verdict; None when it could not be checked.
        finding: What was found, or why it could not be checked.
    """

    name: str
    rung: str
    passed: bool | None
    finding: str


@dataclass(frozen=True)
class Ladder:
    """The whole verdict.

    Attributes:
        rungs: From PyTorch to the last rung.
        gates: The gates that were set, judged on the last rung.
        unchecked: Names of the gates that were not set.
        checks: Checks of labels and pixels; one that failed fails the whole.
    """

    rungs: tuple[Rung, ...]
    gates: tuple[GateResult, ...]
    unchecked: tuple[str, ...]
    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every rung and every gate passed, with at least one rung beside the reference."""
        return (
            len(self.rungs) > 1
            and all(rung.passed for rung in self.rungs)
            and all(gate.passed for gate in self.gates)
            and all(check.passed is not False for check in self.checks)
        )

    def failures(self) -> tuple[str, ...]:
        """Return one line per breach: which rung or gate, and by how much."""
        lines = [f"{rung.name}: {line}" for rung in self.rungs if rung.parity for line in rung.parity.failures]
        if len(self.rungs) < 2:
            lines.append("no rung beside the reference was judged")
        for gate in self.gates:
            if not gate.passed:
                value = "was not measured" if gate.value is None else f"is {gate.value:.4g}"
                note = f" ({gate.note})" if gate.note else ""
                lines.append(f"gate {gate.gate}: limit {gate.limit:g}, {value}{note}")
        lines += [f"{check.rung}: {check.name}: {check.finding}" for check in self.checks if check.passed is False]
        return tuple(lines)


def climb(
    reference: RungInput, rungs: Sequence[RungInput], *, labels: Sequence[int] | None = None, gates: Gates | None = None
) -> Ladder:
    """Judge every rung against the reference and the rung before it.

    Args:
        reference: PyTorch's answers.
        rungs: The others, in the order they were made.
        labels: Class index per image, or None.
        gates: Limits for the last rung.
    """
    judged = [_judge(reference, None, None, labels)]
    for before, rung in zip([reference, *rungs], rungs, strict=False):
        judged.append(_judge(rung, reference, before, labels))
    asked = gates or Gates()
    limits = asked.limits()
    results = [_gate(name, limit, judged, asked.baseline) for name, limit in limits.items() if limit is not None]
    unchecked = tuple(name for name, limit in limits.items() if limit is None)
    return Ladder(tuple(judged), tuple(results) if rungs else (), unchecked)


def _judge(
    rung: RungInput, reference: RungInput | None, before: RungInput | None, labels: Sequence[int] | None
) -> Rung:
    parity = step = difference = None
    own = _logits(rung.recording.outputs, labels)
    if reference is not None and before is not None:
        parity = compare(
            reference.recording,
            rung.recording,
            rung.tolerance,
            names=(reference.name, rung.name),
            same_inputs=rung.same_inputs,
        )
        step = compare(
            before.recording,
            rung.recording,
            Tolerance(),
            names=(before.name, rung.name),
            same_inputs=rung.same_inputs == before.same_inputs,
        )
        expected = _logits(reference.recording.outputs, labels)
        if labels is not None and own is not None and expected is not None:
            difference = compare_top1(expected, own, labels)
    return Rung(
        name=rung.name,
        runtime=rung.recording.runtime,
        precision=rung.precision,
        parity=parity,
        step=step,
        accuracy=None if labels is None or own is None else accuracy(own, labels),
        difference=difference,
        bytes=rung.bytes,
        latency=rung.latency,
        executed=rung.executed,
    )


def _logits(outputs: Mapping[str, Array], labels: Sequence[int] | None) -> Array | None:
    """Return the class scores, if they can be held against the labels."""
    found = class_scores(outputs)
    if found is None or (labels is not None and len(found) != len(labels)):
        return None
    return found


def _gate(name: str, limit: float, rungs: Sequence[Rung], baseline: str) -> GateResult:
    last = rungs[-1]
    value, note = _GATES[name](last, next((rung for rung in rungs if rung.name == baseline), None))
    if value is None:
        note = note or f"there is no rung '{baseline}' to compare with"
        return GateResult(name, limit, None, passed=False, note=note)
    return GateResult(
        name, limit, value, passed=value <= limit if name.startswith("max_") else value >= limit, note=note
    )


_Measured = tuple[float | None, str]


def _top1_drop(last: Rung, _: Rung | None) -> _Measured:
    if last.difference is None:
        return None, "needs labelled verification images and logits"
    low, high = last.difference.interval_points
    return (
        last.difference.drop_points,
        f"95 % interval {low:+.2f} to {high:+.2f} points, McNemar p = {last.difference.p_value:.2g}, "
        f"{last.difference.images} images",
    )


def _agreement(last: Rung, _: Rung | None) -> _Measured:
    main = last.parity.main if last.parity else None
    return (None, "needs logits") if main is None or main.agreement is None else (main.agreement, "")


def _cosine(last: Rung, _: Rung | None) -> _Measured:
    main = last.parity.main if last.parity else None
    return (None, "outputs could not be compared") if main is None else (main.min_cosine, "")


def _speedup(last: Rung, base: Rung | None) -> _Measured:
    if base is None:
        return None, ""
    if base.name == last.name:
        return 1.0, "nothing was replaced"
    if not base.latency or not last.latency:
        return None, f"needs a benchmark of '{last.name}' and '{base.name}'"
    if base.runtime != last.runtime:
        return None, f"'{base.name}' ran on {base.runtime}, '{last.name}' on {last.runtime}"
    return base.latency[0].p50_ms / last.latency[0].p50_ms, f"against '{base.name}', batch {last.latency[0].batch}"


def _size_ratio(last: Rung, base: Rung | None) -> _Measured:
    if base is None:
        return None, ""
    if base.name == last.name:
        return 1.0, "nothing was replaced"
    if not base.bytes or not last.bytes:
        return None, f"needs the file sizes of '{last.name}' and '{base.name}'"
    return last.bytes / base.bytes, f"against '{base.name}'"


def _actual_precision(last: Rung, _: Rung | None) -> _Measured:
    if last.executed is None:
        return None, f"{last.runtime} was not profiled on '{last.name}'"
    found = ", ".join(f"{name} {share:.1%}" for name, share in sorted(last.executed.items(), key=lambda x: -x[1]))
    return last.executed.get(last.precision, 0.0), f"{last.runtime} executed {found} of the weighted work"


_GATES = {
    "max_top1_drop": _top1_drop,
    "min_agreement": _agreement,
    "min_cosine": _cosine,
    "min_speedup": _speedup,
    "max_size_ratio": _size_ratio,
    "min_actual_precision": _actual_precision,
}
