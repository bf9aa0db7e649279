"""Which model file of a bundle serves: the last variant that its recordings and gates accept."""

from __future__ import annotations

from dataclasses import dataclass

from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import REFERENCE, read_recipe, recording_name
from vitexport.errors import BundleError
from vitexport.verification.judge import judge

__all__ = ["Choice", "choose_variant"]


@dataclass(frozen=True)
class Choice:
    """A variant, and why the ones after it were passed over.

    Attributes:
        artifact: The model file.
        rejected: One line per later variant that did not pass its checks.
    """

    artifact: Artifact
    rejected: tuple[str, ...] = ()


def choose_variant(bundle: Bundle, variant: str | None = None) -> Choice:
    """Choose the variant to serve, and check that its file is unaltered.

    Args:
        bundle: An opened bundle.
        variant: Name of a variant to take whatever was found of it; None takes the last one that agrees with PyTorch
            and, when it is the one the gates judge, passes them. A bundle without recordings is taken at its word: its
            last variant.

    Raises:
        BundleError: There is no such variant, none is accepted, or its file was altered.
    """
    names = ", ".join(artifact.name for artifact in bundle.models) or "none"
    if variant is not None:
        named = next((artifact for artifact in bundle.models if artifact.name == variant), None)
        if named is None:
            raise BundleError(
                f"Expected a model named '{variant}' in '{bundle.root}', found {names}.", "Choose one with --variant."
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
        "See `vitexport verify`; to use one all the same, name it with --variant.",
    )


def _rejections(bundle: Bundle) -> dict[str, str]:
    """Return variant name to the reason why it must not serve, from what was recorded in the bundle."""
    if bundle.find(recording_name(REFERENCE)) is None or bundle.find("recipe") is None:
        return {}
    verification = judge(bundle, read_recipe(bundle))
    reasons = {
        variant.name: "; ".join(variant.parity.failures) if variant.parity else f"not run here: {variant.not_run}"
        for variant in verification.variants
        if not variant.passed
    }
    failed = [f"gate {gate.gate}: {gate.value} against {gate.limit}" for gate in verification.gates if not gate.passed]
    if failed:
        reasons.setdefault(verification.variants[-1].name, "; ".join(failed))
    return reasons
