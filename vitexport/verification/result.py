"""What a verification found: every variant, gate and check with its outcome. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vitexport.benchmark.latency import Latency
from vitexport.bundle.layout import ENGINE
from vitexport.scoring import Head
from vitexport.tables import Table, Tabular, cell
from vitexport.verification.accuracy import PairedDifference
from vitexport.verification.paired_map import MapDifference
from vitexport.verification.parity import ParityReport
from vitexport.verification.scores import Score

__all__ = ["LABELS_CHECK", "Check", "GateResult", "VariantResult", "VerificationResult"]

LABELS_CHECK = "labels fit the model"
"""Name of the check that holds labels against PyTorch's answers."""


@dataclass(frozen=True)
class VariantResult:
    """A judged variant.

    Attributes:
        name: Name of the variant.
        runtime: Runtime that answered.
        precision: What its body computes in.
        parity: Against PyTorch; None for PyTorch itself, and for a variant that was not run.
        step: Against the variant before, without limits: who lost what.
        accuracy: How good its answers are on the labelled images; None without labels.
        difference: Paired top-1 difference with PyTorch; None without labels.
        map_difference: The same of mAP, where several labels are found at once.
        bytes: File size with companions.
        latency: By batch size.
        executed: Fraction of the weighted multiply-accumulates executed in each precision; None when not measured.
        not_run: Why no runtime of the machine could execute it; empty where one did.
        recorded: Against what the machine that made the bundle recorded of this same variant; None on that machine.
    """

    name: str
    runtime: str
    precision: str
    parity: ParityReport | None
    step: ParityReport | None
    accuracy: Score | None
    difference: PairedDifference | None
    bytes: int | None
    latency: tuple[Latency, ...]
    executed: Mapping[str, float] | None = None
    not_run: str = ""
    recorded: ParityReport | None = None
    map_difference: MapDifference | None = None

    @property
    def passed(self) -> bool:
        """Whether the variant agrees with PyTorch as asked, and on another machine with its own recorded answers.

        The reference always does, one that was not run never.
        """
        return not self.not_run and all(report.passed for report in (self.parity, self.recorded) if report is not None)


@dataclass(frozen=True)
class GateResult:
    """One gate of the recipe.

    Attributes:
        gate: Name of the setting, e.g. ``max_top1_drop``.
        limit: What was asked.
        value: What was measured; None when it could not be.
        passed: The verdict; False when it could not be measured. Of an undecided gate, what the recipe makes of it.
        note: Why it could not be measured, or how sure the value is.
        undecided: Whether the value misses the limit by less than its 95 % interval: the images are too few to tell.
        interval: That interval; None for a value that is no figure of a sample.
        images_needed: How many images like these would tell the value from the limit, where it lies in the interval.
    """

    gate: str
    limit: float
    value: float | None
    passed: bool
    note: str = ""
    undecided: bool = False
    interval: tuple[float, float] | None = None
    images_needed: int | None = None

    @property
    def status(self) -> str:
        """How it ended, in a word: ``passed``, ``failed``, ``undecided`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        return "undecided" if self.undecided else "passed" if self.passed else "failed"


@dataclass(frozen=True)
class Check:
    """A check of what surrounds the models: their labels, the pixels they are fed.

    Attributes:
        name: What was checked, in words.
        variant: The variant whose numbers it puts in doubt.
        passed: The verdict; None when it could not be checked.
        finding: What was found, or why it could not be checked.
    """

    name: str
    variant: str
    passed: bool | None
    finding: str


@dataclass(frozen=True, repr=False)
class VerificationResult(Tabular):
    """Everything that was found, and whether it is enough.

    Attributes:
        variants: From PyTorch to the last variant.
        gates: The gates that were set, judged on the last variant.
        unchecked: Names of the gates that could judge the model and were not set.
        checks: Checks of labels and pixels; one that failed fails the whole.
        judged_before: For information, gates of the recipe that were judged where the bundle was made and are not here.
        head: How the answers were read.
    """

    variants: tuple[VariantResult, ...]
    gates: tuple[GateResult, ...]
    unchecked: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    judged_before: tuple[GateResult, ...] = ()
    head: Head = Head()  # frozen

    @property
    def passed(self) -> bool:
        """Whether every variant and every gate passed, with at least one variant beside the reference."""
        return (
            len(self.variants) > 1
            and all(variant.passed for variant in self.variants)
            and all(gate.passed for gate in self.gates)
            and all(check.passed is not False for check in self.checks)
        )

    def not_run(self) -> tuple[str, ...]:
        """Return one line per variant that no runtime here can execute: nothing is known of it, good or bad."""
        return tuple(f"{one.name}: not run here: {one.not_run}" for one in self.variants if one.not_run)

    def failures(self) -> tuple[str, ...]:
        """Return one line for everything that keeps this from passing: which variant or gate, and by how much."""
        lines = [
            f"{variant.name}: {line}{against}"
            for variant in self.variants
            for report, against in ((variant.parity, ""), (variant.recorded, ", against its own recorded answers"))
            if report is not None
            for line in report.failures
        ]
        lines += self.not_run()
        if len(self.variants) < 2:
            lines.append("no variant beside the reference was judged")
        for gate in self.gates:
            if not gate.passed:
                value = "was not measured" if gate.value is None else f"is {gate.value:.4g}"
                value += ", undecided" if gate.undecided else ""
                note = f" ({gate.note})" if gate.note else ""
                lines.append(f"gate {gate.gate}: limit {gate.limit:g}, {value}{note}")
        lines += [f"{check.variant}: {check.name}: {check.finding}" for check in self.checks if check.passed is False]
        return tuple(lines)

    def suspect(self) -> str | None:
        """Return the first variant that fails although its graph was made from one that passed, for bisecting."""
        failed = [variant for variant in self.variants[2:] if variant.parity and not variant.passed]
        graphs = [variant for variant in failed if variant.name != ENGINE]
        return graphs[0].name if graphs and self.variants[1].passed else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; numbers that are not finite stay as they are."""
        return {"passed": self.passed, "failures": self.failures(), **asdict(self)}

    def tables(self) -> tuple[Table, ...]:
        """Return the variants, then the gates and checks, as far as there are any."""
        scores = next((variant.accuracy for variant in self.variants if variant.accuracy), None)
        title = "top-1 %" if scores is None else scores.figures()[0][0]
        columns = tuple(title if column == "score" else column for column in _COLUMNS)
        found = [Table("", columns, tuple(_cells(variant) for variant in self.variants), text=("verdict",))]
        if self.gates:
            rows = tuple(
                (gate.gate, f"{gate.limit:g}", cell(gate.value, ".4g"), _gate_verdict(gate), gate.note)
                for gate in self.gates
            )
            found.append(Table("", ("gate", "limit", "value", "verdict", "note"), rows, text=("verdict", "note")))
        if self.checks:
            checked = tuple((check.name, _verdict(check.passed), check.finding) for check in self.checks)
            found.append(Table("", ("check", "verdict", "finding"), checked, text=("verdict", "finding")))
        return tuple(found)


_COLUMNS = (
    "variant",
    "max abs error",
    "cosine",
    "SQNR dB",
    "score",
    "agree %",
    "p50 ms",
    "p99 ms",
    "size MB",
    "verdict",
)


def _cells(variant: VariantResult) -> tuple[str, ...]:
    main = variant.parity.main if variant.parity else None
    latency = variant.latency[0] if variant.latency else None
    return (
        variant.name,
        cell(main.max_abs if main else None, ".2g"),
        cell(main.min_cosine if main else None, ".5f"),
        cell(main.sqnr_db if main else None, ".1f"),
        variant.accuracy.figures()[0][1] if variant.accuracy else "-",
        cell(main.agreement if main else None, ".2f", 100),
        cell(latency.p50_ms if latency else None, ".1f"),
        cell(latency.p99_ms if latency else None, ".1f"),
        cell(variant.bytes, ".2f", 1e-6),
        "not run here" if variant.not_run else "reference" if variant.parity is None else _verdict(variant.passed),
    )


def _gate_verdict(gate: GateResult) -> str:
    return _verdict(gate.passed) + (", undecided" if gate.undecided else "")


def _verdict(passed: bool | None) -> str:
    return "not checked" if passed is None else "ok" if passed else "FAILED"
