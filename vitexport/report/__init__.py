"""Reports on a bundle: ``report.json`` for machines, ``report.html`` and ``report.md`` for people."""

from __future__ import annotations

import json
from pathlib import Path

from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import REFERENCE, read_disagreements, read_replay_inputs, recording_name
from vitexport.files import write_atomic
from vitexport.recipe.settings import Recipe
from vitexport.report.document import SCHEMA, build_document
from vitexport.report.render import render_html, render_markdown, thumbnail
from vitexport.verification.result import VerificationResult

__all__ = ["SCHEMA", "build_document", "write_report"]


def write_report(bundle: Bundle, verification: VerificationResult, recipe: Recipe) -> tuple[Path, ...]:
    """Write the reports into the bundle's directory.

    Returns:
        The files written, ``report.json`` first.

    Raises:
        MissingDependencyError: Jinja2 or matplotlib is not installed.
    """
    document = build_document(bundle, verification, recipe)
    html = render_html(document, _pictures(bundle, [entry["image"] for entry in document["disagreements"]]))
    contents = {
        "report.json": json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": html,
        "report.md": render_markdown(document),
    }
    for name, content in contents.items():
        write_atomic(bundle.root / name, content)
    return tuple(bundle.root / name for name in contents)


def _pictures(bundle: Bundle, names: list[str]) -> dict[str, str]:
    """Return thumbnails of the named images, as far as their pixels travel with the bundle."""
    found: dict[str, str] = {}
    replayed = read_replay_inputs(bundle) if bundle.find(recording_name(REFERENCE)) else None
    for inputs in (read_disagreements(bundle), replayed):
        if inputs is None:
            continue
        for row, name in enumerate(inputs.images):
            if name in names and name not in found:
                found[name] = thumbnail(inputs.pixels[row], bundle.preprocess.channel_order)
    return found
