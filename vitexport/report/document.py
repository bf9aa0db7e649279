"""The content of a report as plain data: what ``report.json`` holds and both readable forms are made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import vitexport
from vitexport.bundle import Artifact, Bundle
from vitexport.disagreement import Disagreement, worst_images
from vitexport.files import finite
from vitexport.ladder import REFERENCE, Ladder
from vitexport.machine import describe_machine
from vitexport.recipe import Recipe
from vitexport.recording import Recording
from vitexport.remarks import budget_sentence, headline, remarks
from vitexport.verdict import recording_name

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
        "remarks": [*remarks(ladder, recipe), *_read(bundle, "benchmark").get("warnings", [])],
        "model": asdict(bundle.model),
        "preprocess": bundle.preprocess.model_dump(mode="json"),
        "images": _images(bundle, ladder),
        **asdict(ladder),
        "disagreements": [_described(entry, bundle.labels) for entry in _disagreements(bundle, ladder)],
        "attempts": _read(bundle, "attempts").get("attempts", []),
        "errors": _read(bundle, "errors").get("rungs", {}),
        "quantization": {a.name: _quantization(a.details) for a in bundle.artifacts if a.details.get("ranges")},
        "artifacts": [_artifact(artifact) for artifact in bundle.artifacts if artifact.kind != "report"],
        "machine": _read(bundle, "benchmark").get("machine") or describe_machine(),
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
    reference, last = bundle.find(recording_name(REFERENCE)), bundle.find(recording_name(ladder.rungs[-1].name))
    if reference is None or last is None:
        return ()
    labels = reference.details.get("image_labels")
    return worst_images(Recording.load(bundle.path(reference)), Recording.load(bundle.path(last)), labels)


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


def _read(bundle: Bundle, name: str) -> dict[str, Any]:
    """Read a JSON artifact of the bundle, or an empty mapping where there is none."""
    artifact = bundle.find(name)
    if artifact is None:
        return {}
    content: dict[str, Any] = json.loads(bundle.path(artifact).read_text(encoding="utf-8"))
    return content
