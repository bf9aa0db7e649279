"""The next safer candidate when a gate fails: int8 with attention, int8 linears, fewer layers, fp16, no quantization.

Pure: knows no pipeline. :func:`settle` is given a function that makes and judges one candidate, and decides what to try
next and what to keep. Every candidate tried is an :class:`Attempt` in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitexport.bundle.layout import REFERENCE
from vitexport.errors import StageError
from vitexport.recipe.settings import WITH_16_BIT_KERNELS, Gates, QuantizeSettings
from vitexport.verification.advice import accuracy_budget
from vitexport.verification.gates import GATES
from vitexport.verification.result import VerificationResult

__all__ = ["Attempt", "Candidate", "candidates", "settle"]


@dataclass(frozen=True)
class Candidate:
    """One way to quantize, or not to.

    Attributes:
        name: What it is, in words.
        settings: For the quantize stage; None ships the float model.
        saves_accuracy_only: Whether it differs from the one before only by keeping more in float.
    """

    name: str
    settings: QuantizeSettings | None
    saves_accuracy_only: bool = False


@dataclass(frozen=True)
class Attempt:
    """What became of a candidate.

    Attributes:
        candidate: Its name.
        index: Its place among the candidates.
        passed: Whether it met every tolerance and gate.
        kept: Whether the bundle holds it.
        reasons: What it failed, one line each; or why it was passed over.
        measured: Gate values by name, and ``agreement``; None where not measured.
    """

    candidate: str
    index: int
    passed: bool
    kept: bool
    reasons: tuple[str, ...]
    measured: Mapping[str, float | None]


def candidates(settings: QuantizeSettings, gates: Gates) -> tuple[Candidate, ...]:
    """Return what to try, in order: what was asked, then ever safer, then the float model.

    A 16-bit body is offered to the targets that have kernels for it.
    """
    found = [Candidate(_describe(settings), settings)]
    if settings.attention != "float":
        settings = settings.model_copy(update={"attention": "float"})
        found.append(Candidate(_describe(settings), settings))
    if settings.precision in ("int8", "fp8") and settings.budget is None:
        searched = settings.model_copy(update={"budget": accuracy_budget(gates)})
        found.append(Candidate(f"{_describe(settings)}, fewest layers that keep the accuracy", searched, True))
    if settings.precision in ("int8", "fp8") and settings.target in WITH_16_BIT_KERNELS:
        changed = {"precision": "fp16", "attention": "float", "budget": None, "exclude": ()}
        body16 = settings.model_copy(update=changed)
        found.append(Candidate("fp16", body16))
    found.append(Candidate("float32, not quantized", None))
    return tuple(found)


def _describe(settings: QuantizeSettings) -> str:
    if settings.precision not in ("int8", "fp8"):
        return settings.precision
    where = "linear layers and attention" if settings.attention != "float" else "linear layers"
    kept = ", layers chosen by budget" if settings.budget is not None else ""
    return f"{settings.precision} {where}{kept}"


def settle(choices: Sequence[Candidate], attempt: Callable[[Candidate], VerificationResult]) -> tuple[Attempt, ...]:
    """Try candidates until one passes.

    Args:
        choices: At least one; the last is kept when none passes.
        attempt: Makes one candidate, runs and judges it. A :class:`StageError` means it cannot be made.

    Returns:
        One entry per candidate tried or passed over, in order; exactly one is kept.

    Raises:
        StageError: Not even the last candidate can be made.
    """
    done: list[Attempt] = []
    gains_failed = False
    for index, choice in enumerate(choices):
        last = index == len(choices) - 1
        if choice.saves_accuracy_only and gains_failed:
            reason = "passed over: only speed, size or precision failed, and more layers in float gain none of these"
            done.append(Attempt(choice.name, index, passed=False, kept=False, reasons=(reason,), measured={}))
            continue
        try:
            verification = attempt(choice)
        except StageError as error:
            if last:
                raise
            reasons = (f"could not be made: {error.message}",)
            done.append(Attempt(choice.name, index, passed=False, kept=False, reasons=reasons, measured={}))
            gains_failed = False
            continue
        broken = _float_failures(verification)
        kept = verification.passed or last or bool(broken)
        failures = verification.failures()
        done.append(Attempt(choice.name, index, verification.passed, kept, failures, _measured(verification)))
        if kept:
            break  # a float variant that fails is no fault of the quantization: nothing safer would help
        gains_failed = all(variant.passed for variant in verification.variants) and all(
            gate.passed or GATES[gate.gate].asks_gain for gate in verification.gates
        )
    return tuple(done)


def _float_failures(verification: VerificationResult) -> list[str]:
    """Return the float variants and checks that failed before any quantization."""
    variants = [
        variant.name for variant in verification.variants if variant.precision == "float32" and not variant.passed
    ]
    checks = [check.name for check in verification.checks if check.passed is False and check.variant == REFERENCE]
    return variants + checks


def _measured(verification: VerificationResult) -> dict[str, Any]:
    last = verification.variants[-1]
    main = last.parity.main if last.parity else None
    found: dict[str, Any] = {"agreement": main.agreement if main else None}
    if last.latency:
        found["p50_ms"] = last.latency[0].p50_ms
    return {**found, **{gate.gate: gate.value for gate in verification.gates}}
