"""Which model serves, is built, packed or checked: the last variant that its recordings and gates accept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import CHOSEN, REFERENCE, read_recipe, recording_name
from vitexport.bundle.target import Target
from vitexport.errors import BundleError
from vitexport.files import sha256_file
from vitexport.verification.judge import judge

__all__ = ["Choice", "choose_model", "choose_variant"]


@dataclass(frozen=True)
class Choice:
    """A model file, and what everything made of it names it by.

    Attributes:
        path: The file.
        variant: Name of the variant in its bundle; of a file that is no part of one, its name without the ending.
        sha256: Of the model; see :attr:`vitexport.bundle.bundle.Artifact.sha256`.
        notes: What a person must know of the choice, one sentence each: why a later variant was passed over, or that
            the checks reject this one, or that nobody made them.
    """

    path: Path
    variant: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Variant and the first 12 digits of the hash, for people."""
        return f"{self.variant} (sha256 {self.sha256[:12]})"

    def to_dict(self) -> dict[str, Any]:
        """Return variant, hash and notes as plain values."""
        return {"variant": self.variant, "sha256": self.sha256, "notes": list(self.notes)}


def choose_model(target: Target, variant: str | None = None, *, onnx: bool = False) -> Choice:
    """Choose a model of a bundle as :func:`choose_variant` does, or take the one file that a target is.

    Args:
        target: See :func:`vitexport.bundle.target.resolve_target`.
        variant: Name of a variant; None takes the last accepted one.
        onnx: Take ONNX files only.

    Raises:
        BundleError: As :func:`choose_variant`; or the file is no ONNX file, or a variant of a file is asked for.
    """
    if target.bundle is not None:
        return choose_variant(target.bundle, variant, onnx=onnx)
    if variant is not None:
        target.model(variant)  # a file has none to choose from, and says so
    path = (target.onnx_file() if onnx else target.models[0]).path
    return Choice(path, path.stem, sha256_file(path))


def choose_variant(bundle: Bundle, variant: str | None = None, *, onnx: bool = False) -> Choice:
    """Choose the variant to use, and check that its file is unaltered.

    Args:
        bundle: An opened bundle.
        variant: Name of a variant to take whatever was found of it; None takes the last one that agrees with PyTorch
            and, when it is the one the gates judge, passes them. A bundle without recordings is taken at its word: its
            last variant. The model of a kit was chosen where it was packed.
        onnx: Choose among the ONNX files only.

    Raises:
        BundleError: There is no such variant, none is accepted, or its file was altered.
    """
    what = "an ONNX model" if onnx else "a model"
    models = tuple(artifact for artifact in bundle.models if not onnx or artifact.file.path.endswith(".onnx"))
    if not models:
        raise BundleError(
            f"Expected {what} in the bundle '{bundle.root}', found none.",
            f"Run its recipe to {'`export`' if onnx else 'the end'}.",
        )
    rejections = _rejections(bundle)
    packed = next((artifact for artifact in models if CHOSEN in artifact.details), None)
    if packed is not None and variant in (None, packed.name):
        artifact, notes = packed, tuple(packed.details[CHOSEN])
    elif variant is None:
        artifact, notes = _last_accepted(bundle, models, rejections)
    else:
        artifact = _named(bundle, models, variant, what)
        reason = (rejections or {}).get(variant)
        notes = () if reason is None else (f"{variant} was asked for, although its checks did not pass: {reason}",)
    if rejections is None and artifact is not packed:
        notes = (f"{artifact.name} was taken without a verdict: the bundle holds no recordings to judge it by",)
    bundle.check_artifact(artifact)
    return Choice(bundle.path(artifact), artifact.name, artifact.sha256, notes)


def _named(bundle: Bundle, models: tuple[Artifact, ...], variant: str, what: str) -> Artifact:
    named = next((artifact for artifact in models if artifact.name == variant), None)
    if named is None:
        names = ", ".join(artifact.name for artifact in models)
        raise BundleError(
            f"Expected {what} named '{variant}' in the bundle '{bundle.root}', found {names}.",
            "Choose one with --variant.",
        )
    return named


def _last_accepted(
    bundle: Bundle, models: tuple[Artifact, ...], rejections: Mapping[str, str] | None
) -> tuple[Artifact, tuple[str, ...]]:
    passed_over: list[str] = []
    for artifact in reversed(models):
        reason = (rejections or {}).get(artifact.name)
        if reason is None:
            return artifact, tuple(f"passed over, as its checks did not pass: {line}" for line in passed_over)
        passed_over.append(f"{artifact.name}: {reason}")
    raise BundleError(
        f"No model of the bundle '{bundle.root}' passed its checks: {'; '.join(passed_over)}.",
        "See `vitexport verify`; to use one all the same, name it with --variant.",
    )


def _rejections(bundle: Bundle) -> dict[str, str] | None:
    """Return variant name to the reason why it must not be used; None where nothing was recorded to judge by."""
    recorded = [artifact.name for artifact in bundle.models if bundle.find(recording_name(artifact.name)) is not None]
    if not recorded or bundle.find(recording_name(REFERENCE)) is None or bundle.find("recipe") is None:
        return None
    verification = judge(bundle, read_recipe(bundle))
    reasons = {artifact.name: "it was not verified" for artifact in bundle.models if artifact.name not in recorded}
    reasons |= {
        variant.name: "; ".join(variant.parity.failures) if variant.parity else f"not run here: {variant.not_run}"
        for variant in verification.variants
        if not variant.passed
    }
    failed = [
        f"gate {gate.gate}: {'not measured' if gate.value is None else f'{gate.value:.4g}'} against {gate.limit:g}"
        for gate in verification.gates
        if not gate.passed
    ]
    if failed:
        reasons.setdefault(verification.variants[-1].name, "; ".join(failed))
    return {name: " ".join(reason.split()) for name, reason in reasons.items()}  # in one line, for comments of files
