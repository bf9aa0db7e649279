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
    read_recording,
    recording_name,
)
from vitexport.files import finite
from vitexport.machine import describe_machine
from vitexport.recipe.settings import Recipe
from vitexport.verify.disagreement import Disagreement, worst_images
from vitexport.verify.summary import budget_sentence, headline, remarks
from vitexport.verify.variants import Ladder

__all__ = ["SCHEMA", "build_document"]

SCHEMA = 1


def build_document(bundle: Bundle, ladder: Ladder, recipe: Recipe) -> dict[str, Any]:
    """Gather everything a report says; JSON-ready, described in ``docs/report.md``.

    Numbers that are not finite (the SQNR of equal outputs, an error on a NaN) become None, because JSON has no name for
    them.
    """
    content = {
        "schema": SCHEMA,
        "name": recipe.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "vitexport": vitexport.__version__,
        "passed": ladder.passed,
        "headline": headline(ladder),
        "failures": ladder.failures(),
        "remarks": [*remarks(ladder, recipe), *(read_analysis(bundle, BENCHMARK) or {}).get("warnings", [])],
        "model": asdict(bundle.model),
        "preprocess": bundle.preprocess.model_dump(mode="json"),
        "images": _images(bundle, ladder),
        **asdict(ladder),
        "disagreements": [_described(entry, bundle.labels) for entry in _disagreements(bundle, ladder)],
        "attempts": (read_analysis(bundle, ATTEMPTS) or {}).get("attempts", []),
        "errors": (read_analysis(bundle, ERRORS) or {}).get("rungs", {}),
        "quantization": {a.name: _quantization(a.details) for a in bundle.artifacts if a.details.get("ranges")},
        "artifacts": [_artifact(artifact) for artifact in bundle.artifacts if artifact.kind != "report"],
        "machine": (read_analysis(bundle, BENCHMARK) or {}).get("machine") or describe_machine(),
        "recipe": recipe.model_dump(mode="json"),
    }
    for entry, rung in zip(content["rungs"], ladder.rungs, strict=True):
        entry["passed"] = rung.passed
    cleaned = finite(content)
    assert isinstance(cleaned, dict)
    return cleaned


def _images(bundle: Bundle, ladder: Ladder) -> dict[str, Any]:
    reference = bundle.find(recording_name(REFERENCE))
    count = max((rung.parity.images for rung in ladder.rungs if rung.parity), default=0)
    labelled = any(rung.accuracy is not None for rung in ladder.rungs)
    return {"verification": count, "labelled": labelled, "recorded": reference is not None}


def _disagreements(bundle: Bundle, ladder: Ladder) -> Sequence[Disagreement]:
    reference, last = REFERENCE, ladder.rungs[-1].name
    found = bundle.find(recording_name(reference))
    if found is None or bundle.find(recording_name(last)) is None:
        return ()
    labels = found.details.get("image_labels")
    return worst_images(read_recording(bundle, reference), read_recording(bundle, last), labels)


def _described(entry: Disagreement, names: Sequence[str]) -> dict[str, Any]:
    """Add class names to the indices of a disagreement."""

    def name(index: int | None) -> str | None:
        return None if index is None else names[index] if 0 <= index < len(names) else f"class {index}"

    described = asdict(entry)
    described["label_name"] = name(entry.label)
    described["reference"]["name"] = name(entry.reference.index)
    described["candidate"]["name"] = name(entry.candidate.index)
    described["same_class"] = entry.same_class
    return described


def _artifact(artifact: Artifact) -> dict[str, Any]:
    dumped: dict[str, Any] = artifact.model_dump(mode="json")
    return dumped


def _quantization(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the quantizer says of itself: its inputs, and what a budget left in float."""
    mixed = details.get("mixed_precision")
    return {
        "ranges": details["ranges"],
        "mixed_precision": mixed,
        "budget": None if mixed is None else budget_sentence(mixed),
    }
