"""The content of a report as plain data: what ``report.json`` holds and both readable forms are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import vitexport
from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import (
    ATTEMPTS,
    BENCHMARK,
    ERRORS,
    REFERENCE,
    read_analysis,
    read_labels,
    read_recording,
    recording_name,
)
from vitexport.bundle.metadata import ModelMetadata
from vitexport.files import finite
from vitexport.machine import describe_machine
from vitexport.recipe.settings import Recipe
from vitexport.report.sections import SECTIONS
from vitexport.verification.advice import advise_on
from vitexport.verification.disagreement import Disagreement, worst_images
from vitexport.verification.quantized import budget_sentence, held_out_sentence, kept_float, measured_sentence
from vitexport.verification.result import VerificationResult
from vitexport.verification.summary import headline, remarks

__all__ = ["SCHEMA", "build_document"]

SCHEMA = 3


def build_document(bundle: Bundle, verification: VerificationResult, recipe: Recipe) -> dict[str, Any]:
    """Gather everything a report says; JSON-ready, described in ``docs/report.md``.

    Numbers that are not finite (the SQNR of equal outputs, an error on a NaN) become None, because JSON has no name for
    them.
    """
    content = {
        "schema": SCHEMA,
        "name": recipe.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "vitexport": vitexport.__version__,
        "passed": verification.passed,
        "headline": headline(verification, recipe),
        "failures": verification.failures(),
        "advice": advise_on(bundle, verification, recipe),
        "remarks": [*remarks(verification, recipe), *(read_analysis(bundle, BENCHMARK) or {}).get("warnings", [])],
        "model": asdict(bundle.model),
        "preprocess": bundle.preprocess.model_dump(mode="json"),
        "images": _images(bundle, verification),
        **asdict(verification),
        "disagreements": [_described(entry, bundle.metadata) for entry in _disagreements(bundle, verification)],
        "sections": [asdict(made) for make in SECTIONS if (made := make(bundle, verification)) is not None],
        "attempts": (read_analysis(bundle, ATTEMPTS) or {}).get("attempts", []),
        "errors": (read_analysis(bundle, ERRORS) or {}).get("variants", {}),
        "quantization": {a.name: _quantization(a.details) for a in bundle.artifacts if _measured(a.details)},
        "artifacts": [_artifact(artifact) for artifact in bundle.artifacts if artifact.kind != "report"],
        "machine": (read_analysis(bundle, BENCHMARK) or {}).get("machine") or describe_machine(),
        "recipe": recipe.model_dump(mode="json"),
    }
    for entry, variant in zip(content["variants"], verification.variants, strict=True):
        entry["passed"] = variant.passed
        entry["figures"] = [] if variant.accuracy is None else [list(pair) for pair in variant.accuracy.figures()]
    cleaned = finite(content)
    assert isinstance(cleaned, dict)
    return cleaned


def _images(bundle: Bundle, verification: VerificationResult) -> dict[str, Any]:
    reference = bundle.find(recording_name(REFERENCE))
    count = max((variant.parity.images for variant in verification.variants if variant.parity), default=0)
    labelled = any(variant.accuracy is not None for variant in verification.variants)
    scores = next((variant.accuracy for variant in verification.variants if variant.accuracy), None)
    score = "top-1 %" if scores is None else scores.figures()[0][0]
    return {"verification": count, "labelled": labelled, "score": score, "recorded": reference is not None}


def _disagreements(bundle: Bundle, verification: VerificationResult) -> Sequence[Disagreement]:
    reference, last = REFERENCE, verification.variants[-1].name
    found = bundle.find(recording_name(reference))
    if found is None or bundle.find(recording_name(last)) is None:
        return ()
    targets, _ = read_labels(bundle)
    return worst_images(
        read_recording(bundle, reference), read_recording(bundle, last), targets, head=bundle.metadata.head
    )


def _described(entry: Disagreement, metadata: ModelMetadata) -> dict[str, Any]:
    """Add class names to the indices of a disagreement, and its scores as text."""
    names = metadata.class_names

    def name(index: int | None) -> str | None:
        return None if index is None else names[index] if 0 <= index < len(names) else f"class {index}"

    described = asdict(entry)
    described["target_name"] = name(entry.target)
    described["reference"]["name"] = name(entry.reference.index)
    described["candidate"]["name"] = name(entry.candidate.index)
    for side in ("reference", "candidate"):
        score = described[side]["score"]
        described[side]["says"] = f"{score:.4g}" if metadata.scoring == "none" else f"{score:.0%}"
    return described


def _artifact(artifact: Artifact) -> dict[str, Any]:
    dumped: dict[str, Any] = artifact.model_dump(mode="json")
    return dumped


def _measured(details: Mapping[str, Any]) -> bool:
    return bool(details.get("ranges")) or "quality" in details


def _quantization(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the quantizer says of itself: its inputs, what stayed float and why, and what was measured."""
    mixed = details.get("mixed_precision")
    return {
        "ranges": details.get("ranges", []),
        "kept_float": [{"groups": groups, "reason": reason} for groups, reason in kept_float(details)],
        "images": details.get("images"),
        "held_out": held_out_sentence(details),
        "quality": details.get("quality"),
        "measured": measured_sentence(details),
        "clipped": details.get("clipped", []),
        "mixed_precision": mixed,
        "budget": None if mixed is None else budget_sentence(mixed),
    }
