"""Which model file of a bundle serves: the last rung that its evidence accepts."""

from __future__ import annotations

from dataclasses import dataclass

from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import REFERENCE, recording_name
from vitexport.errors import BundleError
from vitexport.verify.replay import bundle_recipe, judge

__all__ = ["Choice", "choose_rung"]


@dataclass(frozen=True)
class Choice:
    """A rung, and why the ones after it were passed over.

    Attributes:
        artifact: The model file.
        rejected: One line per later rung that failed its checks.
    """

    artifact: Artifact
    rejected: tuple[str, ...] = ()


def choose_rung(bundle: Bundle, rung: str | None = None) -> Choice:
    """Choose the rung to serve, and check that its file is unaltered.

    Args:
        bundle: An opened bundle.
        rung: Name of a rung to take whatever its verdict; None takes the last one that agrees with PyTorch and, when it
            is the one the gates judge, passes them. A bundle without recordings is taken at its word: its last rung.

    Raises:
        BundleError: There is no such rung, none is accepted, or its file was altered.
    """
    names = ", ".join(artifact.name for artifact in bundle.models) or "none"
    if rung is not None:
        named = next((artifact for artifact in bundle.models if artifact.name == rung), None)
        if named is None:
            raise BundleError(
                f"Expected a model named '{rung}' in '{bundle.root}', found {names}.", "Choose one with --rung."
            )
        choice = Choice(named)
    elif not bundle.models:
        raise BundleError(f"Expected a model in the bundle '{bundle.root}', found none.", "Run its recipe to the end.")
    else:
        choice = _last_accepted(bundle)
    bundle.check_artifact(choice.artifact)
    return choice


def _last_accepted(bundle: Bundle) -> Choice:
    rejections = _rejections(bundle)
    passed_over: list[str] = []
    for artifact in reversed(bundle.models):
        reason = rejections.get(artifact.name)
        if reason is None:
            return Choice(artifact, tuple(passed_over))
        passed_over.append(f"{artifact.name}: {reason}")
    raise BundleError(
        f"No model of the bundle '{bundle.root}' passed its checks: {'; '.join(passed_over)}.",
        "See `vitexport verify`; to use one all the same, name it with --rung.",
    )


def _rejections(bundle: Bundle) -> dict[str, str]:
    """Return rung name to the reason why it must not serve, from the evidence inside the bundle."""
    if bundle.find(recording_name(REFERENCE)) is None or bundle.find("recipe") is None:
        return {}
    ladder = judge(bundle, bundle_recipe(bundle))
    reasons = {rung.name: "; ".join(rung.parity.failures) for rung in ladder.rungs if rung.parity and not rung.passed}
    failed = [f"gate {gate.gate}: {gate.value} against {gate.limit}" for gate in ladder.gates if not gate.passed]
    if failed:
        reasons.setdefault(ladder.rungs[-1].name, "; ".join(failed))
    return reasons
