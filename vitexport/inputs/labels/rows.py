"""Labels in rows, as CSV, JSON and JSON Lines files hold them: which columns say what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitexport.errors import ImageError
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.match import match
from vitexport.inputs.labels.wording import listed

__all__ = ["Columns", "Row", "Written", "is_label_column", "read_rows", "text_of"]

Written = str | tuple[str, ...]
"""A label as it is written: one text, or several."""

_FILE_COLUMNS = (
    "file_name",
    "filename",
    "file",
    "image",
    "path",
    "file_path",
    "filepath",
    "image_path",
    "image_name",
    "image_id",
    "img",
    "id",
)
_LABEL_COLUMNS = ("label", "labels", "class", "classes", "class_name", "category", "target", "targets", "value")
_PRESENT, _ABSENT = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no", ""})


@dataclass(frozen=True)
class Columns:
    """Which columns of a file to read; None takes the first of the usual names.

    Attributes:
        file: Column of the image's file name.
        label: Column of its label.
    """

    file: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        where: What messages call it, e.g. ``line 3``.
        cells: Its cells by column.
    """

    where: str
    cells: Mapping[str, Any]


def read_rows(rows: Sequence[Row], columns: Columns, classes: Classes, *, path: str) -> dict[str, Written]:
    """Read the label of each file.

    Args:
        rows: At least one, all with the same columns.
        columns: Which columns were asked for.
        classes: The outputs; they may also be columns of their own, of 0 and 1, named as the classes. Columns beside
            these are left out, unless one of them is a usual name for labels.
        path: What messages call the file.

    Returns:
        File to label.

    Raises:
        ImageError: There is no such column, or a row has no label, or two rows have different ones for a file.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.cells))
    file = _column(columns.file, _FILE_COLUMNS, names, what="file", path=path)
    others = [name for name in names if name != file]
    marks = () if columns.label else _marks(others, classes)
    try:
        label = None if marks else _column(columns.label, _LABEL_COLUMNS, others, what="label", path=path)
    except ImageError:
        marks = () if columns.label else _marks_beside_others(others, classes)
        if not marks:
            raise
        label = None
    found: dict[str, Written] = {}
    first: dict[str, str] = {}
    for row in rows:
        where = f"'{path}', {row.where}"
        key = row.cells.get(file)
        if not isinstance(key, str | int) or not str(key).strip():
            raise ImageError(f"Expected a file name in {where}, found {key!r}.", f"Fill the column '{file}'.")
        key = str(key).strip()
        if label is None:
            value: Written = tuple(name for name in marks if _is_marked(row.cells.get(name), where, name))
        else:
            value = text_of(row.cells.get(label), where=where, several=classes.scoring == "sigmoid")
        if key in found and classes.scoring == "sigmoid" and label is not None:
            value = (*_several(found[key]), *_several(value))
        elif found.get(key, value) != value:
            raise ImageError(
                f"Expected one label for '{key}' in '{path}', found '{found[key]}' in {first[key]} and '{value}' in "
                f"{row.where}.",
                "Leave one of them out.",
            )
        found[key] = value
        first.setdefault(key, row.where)
    return found


def text_of(value: Any, *, where: str, several: bool = False) -> Written:
    """Return a label as text.

    Args:
        value: A cell, or what JSON made of a value.
        where: Its place, for the message.
        several: Whether there may be none at all.

    Raises:
        ImageError: It is empty, or neither text, number nor a list of these.
    """
    if isinstance(value, Mapping) and "index" in value:
        value = value["index"]
    if isinstance(value, list | tuple):
        return tuple(str(text_of(entry, where=where)) for entry in value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool | int | float):
        return str(int(value)) if isinstance(value, bool) else str(value)
    if several and (value is None or value == ""):
        return ()
    found = "nothing" if value is None or value == "" else repr(value)
    raise ImageError(
        f"Expected a label in {where}, found {found}.", "Write a class name or an index, or leave the row out."
    )


def _several(value: Written) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def is_label_column(name: str) -> bool:
    """Return whether a column is one that labels are looked for in."""
    return _plain(name) in _LABEL_COLUMNS


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _column(asked: str | None, usual: Iterable[str], names: Sequence[str], *, what: str, path: str) -> str:
    """Return the column that was asked for, or the first of the usual ones."""
    plain = {_plain(name): name for name in reversed(names)}
    chosen = asked if asked in names else None if asked else next((plain[n] for n in usual if n in plain), None)
    if chosen is not None:
        return chosen
    wanted = f"a column '{asked}'" if asked else f"a column for the {what} ({listed(list(usual), 4)})"
    raise ImageError(
        f"Expected {wanted} in '{path}', found the columns {listed([repr(name) for name in names])}.",
        f"Name it with --{what}-column ({what}_column in a recipe); the first line of a table names its columns.",
    )


def _marks(names: Sequence[str], classes: Classes) -> tuple[str, ...]:
    """Return the columns that are named as the classes; none unless all are."""
    if classes.scoring == "none" or not classes.names or not names:
        return ()
    return tuple(names) if match(names, classes).complete else ()


def _marks_beside_others(names: Sequence[str], classes: Classes) -> tuple[str, ...]:
    """Return the columns of 0 and 1 where other columns stand beside one for every class, named exactly so."""
    return classes.names if classes.scoring != "none" and set(classes.names) <= set(names) else ()


def _is_marked(cell: Any, where: str, name: str) -> bool:
    text = "" if cell is None else str(cell).strip().lower().removesuffix(".0")
    if text in _PRESENT | _ABSENT:
        return text in _PRESENT
    raise ImageError(f"Expected 0 or 1 for '{name}' in {where}, found {cell!r}.", "Write 1 where the label is there.")
