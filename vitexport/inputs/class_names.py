"""Class names from a file that a person has: text with one per line, JSON, or a table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from vitexport.errors import RecipeError

__all__ = ["read_class_names"]


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return class names in the order of the model's outputs.

    Args:
        path: ``.txt`` with one name per line; ``.json`` with a list, or a mapping of index to name; ``.csv`` or
            ``.tsv`` with rows of names, or of index and name under a header.

    Raises:
        RecipeError: The file cannot be read, holds no names, or its indices do not count from 0 without a gap.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = _indexed(path, text)
    except (OSError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"Expected class names in '{path}', found: {error}",
            "Give a .txt with one name per line, a .json list or mapping of index to name, or a .csv of both.",
        ) from error
    if not found or sorted(found) != list(range(len(found))):
        raise RecipeError(
            f"Expected the class names of '{path}' to count from 0 without a gap, found {len(found)} names.",
            "Name every output of the model once.",
        )
    return tuple(found[index] for index in range(len(found)))


def _indexed(path: Path, text: str) -> dict[int, str]:
    if path.suffix == ".json":
        data = json.loads(text)
        entries = data.items() if isinstance(data, dict) else enumerate(data)
        return {int(index): str(name) for index, name in entries}
    if path.suffix not in (".csv", ".tsv"):
        return dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
    rows = [row for row in csv.reader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ",") if row]
    if all(len(row) == 1 for row in rows):
        return dict(enumerate(row[0].strip() for row in rows))
    body = rows if rows[0][0].strip().isdigit() else rows[1:]
    return {int(row[0]): row[1].strip() for row in body}
