"""Labels files: CSV, TSV, JSON and JSON Lines.

JSON may be a manifest, ``{"images": [{"file": "a.png", "label": 3}]}``, a list of such entries, ``{"a.png": 3}``, or,
for names that start with a synset or lie in a folder of that name, ``{"n01440764": {"index": 0}}``. JSON Lines and
tables have one image per line, as ``metadata.jsonl`` and ``metadata.csv`` of the image folders of Hugging Face's
datasets. Of COCO's annotations (https://cocodataset.org/#format-data) the names of the categories in an image are its
labels.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitexport.errors import ImageError
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.rows import Columns, Row, Written, read_rows, text_of

__all__ = ["read_labels", "read_table", "read_text"]

_FORMS = (
    'Write a CSV with the columns file,label, or JSON: {"a.png": "cat"}, {"images": [{"file": "a.png", "label": 3}]}.'
)
_DELIMITERS = (",", ";", "\t", "|")


def read_labels(path: Path, columns: Columns, classes: Classes) -> dict[str, Written]:
    """Read what a file says of each image.

    Args:
        path: A ``.csv``, ``.tsv``, ``.json`` or ``.jsonl`` file.
        columns: Which columns of a table to read.
        classes: The outputs the labels are meant for.

    Returns:
        File name, folder or synset to label.

    Raises:
        ImageError: It cannot be read; the message names the place.
    """
    text = read_text(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = [Row(where, cells) for where, cells in read_table(text, path)]
    elif suffix in (".jsonl", ".ndjson"):
        rows = [_object(_json(line, path, number), path, f"line {number}") for number, line in _lines(text)]
    elif suffix == ".json":
        data = _json(text, path)
        if isinstance(data, Mapping) and {"images", "annotations", "categories"} <= data.keys():
            return _coco(data, path)
        entries = data.get("images") if isinstance(data, Mapping) and "images" in data else data
        if isinstance(entries, Mapping):
            several = classes.scoring == "sigmoid"
            return {
                str(key): text_of(value, where=f"'{path}' for '{key}'", several=several)
                for key, value in entries.items()
            }
        if not isinstance(entries, list):
            raise ImageError(f"Expected labels in '{path}', found {type(entries).__name__}.", _FORMS)
        rows = [_object(entry, path, f"entry {number}") for number, entry in enumerate(entries, start=1)]
    else:
        raise ImageError(f"Expected labels as .csv, .tsv, .json or .jsonl, found '{path}'.", _FORMS)
    if not rows:
        raise ImageError(f"Expected labels in '{path}', found none.", _FORMS)
    return read_rows(rows, columns, classes, path=str(path))


def _coco(data: Mapping[str, Any], path: Path) -> dict[str, Written]:
    try:
        names = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
        found: dict[Any, list[str]] = {entry["id"]: [] for entry in data["images"]}
        for entry in data["annotations"]:
            found[entry["image_id"]].append(names[entry["category_id"]])
        return {str(entry["file_name"]): tuple(dict.fromkeys(found[entry["id"]])) for entry in data["images"]}
    except (KeyError, TypeError) as error:
        raise ImageError(
            f"Expected annotations as COCO has them in '{path}', found an entry without {error}.",
            "Each annotation names an image_id and a category_id that images and categories have.",
        ) from error


def read_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        ImageError: It is not there, or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as found:
        raise ImageError(f"Expected a file at '{path}', found: {found.strerror}.", "Correct the path.") from found
    except UnicodeDecodeError as found:
        raise ImageError(f"Expected UTF-8 text in '{path}', found: {found}.", "Save the file as UTF-8.") from found


def read_table(text: str, path: Path) -> list[tuple[str, dict[str, str]]]:
    """Read a table whose first line names the columns.

    Args:
        text: Its text.
        path: Its file; ``.tsv`` is separated by tabs, anything else by what occurs most in the first line.

    Returns:
        Place and cells of each row; empty lines are left out.

    Raises:
        ImageError: A line has more or fewer cells than the first.
    """
    first = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[str, dict[str, str]]] = []
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                continue
            if len(cells) != len(header):
                raise ImageError(
                    f"Expected {len(header)} cells in '{path}', line {reader.line_num}, found {len(cells)}.",
                    "Quote a cell that holds the separator.",
                )
            rows.append((f"line {reader.line_num}", dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise ImageError(
            f"Expected a table in '{path}', found at line {reader.line_num}: {error}.", "Correct the quotes there."
        ) from error
    return rows


def _lines(text: str) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _json(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise ImageError(f"Expected labels in '{path}', found no JSON at {place}: {error.msg}.", _FORMS) from error
    except RecursionError as error:
        raise ImageError(f"Expected labels in '{path}', found JSON that is nested too deeply.", _FORMS) from error


def _object(entry: Any, path: Path, where: str) -> Row:
    if not isinstance(entry, Mapping):
        raise ImageError(f"Expected file and label in '{path}', {where}, found {entry!r}.", _FORMS)
    return Row(where, {str(key): value for key, value in entry.items()})
