"""Judging a bundle by what was recorded in it: outputs, latencies, checks. Runs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vitexport.benchmark.latency import Latency
from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import BENCHMARK, REFERENCE, read_analysis, read_labels, read_recording, recording_name
from vitexport.bundle.recording import Recording
from vitexport.errors import BundleError
from vitexport.recipe.settings import Recipe, VerifySettings
from vitexport.scoring import Head
from vitexport.verification.checks import library_check, targets_check
from vitexport.verification.result import Check, VerificationResult
from vitexport.verification.variants import VariantInput, evaluate_variants

__all__ = ["bundle_head", "judge", "variant_input", "with_checks"]


def judge(bundle: Bundle, recipe: Recipe) -> VerificationResult:
    """Judge a bundle by the recordings and latencies inside it.

    Raises:
        BundleError: The bundle holds no reference recording.
    """
    targets, matched = read_labels(bundle)
    measured = _measured(bundle)
    variants = []
    for artifact in bundle.models:
        if bundle.find(recording_name(artifact.name)) is not None:
            recording = read_recording(bundle, artifact.name)
            latency, executed = measured.get(artifact.name, ((), None))
            variants.append(variant_input(artifact, recording, recipe.verify, latency, executed))
    outputs, head = read_recording(bundle, REFERENCE), bundle_head(bundle, recipe)
    verification = evaluate_variants(
        VariantInput(
            REFERENCE,
            "float32",
            outputs,
            recipe.verify.float_tolerance,
            latency=measured.get(REFERENCE, ((), None))[0],
        ),
        variants,
        targets=targets,
        gates=recipe.gates,
        head=head,
    )
    numbered = targets_check(outputs, targets, class_names=bundle.class_names, matched=matched)
    return with_checks(verification, numbered, library_check(bundle))


def bundle_head(bundle: Bundle, recipe: Recipe) -> Head:
    """Return how the outputs of a bundle's models are read, with the recipe's threshold."""
    return replace(bundle.metadata.head, threshold=recipe.verify.threshold)


def with_checks(verification: VerificationResult, *checks: Check | None) -> VerificationResult:
    """Return the result with these checks; those that did not apply are None."""
    return replace(verification, checks=tuple(check for check in checks if check is not None))


def variant_input(
    artifact: Artifact,
    recording: Recording,
    verify: VerifySettings,
    latency: tuple[Latency, ...],
    executed: Mapping[str, float] | None,
) -> VariantInput:
    """Return what is known of a model of the bundle before it is judged.

    Args:
        artifact: The model.
        recording: Its outputs.
        verify: Tolerances: one for float32, one for everything else.
        latency: By batch size; empty when not measured.
        executed: Fraction of the weighted work in each precision; None when not measured.
    """
    return VariantInput(
        name=artifact.name,
        precision=artifact.precision,
        recording=recording,
        tolerance=verify.float_tolerance if artifact.precision == "float32" else verify.quantized_tolerance,
        same_inputs=artifact.details.get("input", "float32") == "float32",
        bytes=artifact.total_bytes,
        latency=latency,
        executed=executed,
    )


def _measured(bundle: Bundle) -> dict[str, tuple[tuple[Latency, ...], Mapping[str, float] | None]]:
    """Return latencies and executed precisions by variant; empty where nothing was measured."""
    data = read_analysis(bundle, BENCHMARK)
    if data is None:
        return {}
    try:
        executed = data.get("executed", {})
        return {
            name: (tuple(Latency.from_dict(entry) for entry in entries), executed.get(name))
            for name, entries in data["variants"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"Expected latencies in the bundle '{bundle.root}', found: {error!r}", "Run the recipe again."
        ) from error
