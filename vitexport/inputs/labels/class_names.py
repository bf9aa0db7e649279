"""Class names from a file, or from the folders a model was trained with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitexport.errors import ImageError, ModelSourceError
from vitexport.inputs.labels.read import read_table, read_text
from vitexport.inputs.labels.wording import listed

__all__ = ["read_class_names"]

_FORMS = 'Write one name a line (.txt), or ["cat", "dog"] or {"0": "cat"} (.json), or the columns index,name (.csv).'
_NAME_COLUMNS = ("name", "class_name", "class", "label", "category")
_INDEX_COLUMNS = ("index", "id", "idx", "class_id")


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names in the order of a model's outputs.

    Args:
        path: ``.txt`` with one name a line; ``.json`` with a list, or with an object from index to name (or from name
            to index, as timm and torchvision save it); ``.csv`` or ``.tsv`` with the names in one column in order, or
            with their indices beside them; or the directory of training images, whose folders are numbered in sorted
            order, as ``torchvision.datasets.ImageFolder`` does it.

    Raises:
        ModelSourceError: It cannot be read, or an index is missing.
    """
    try:
        names = _folders(path) if path.is_dir() else _from_file(path)
    except ImageError as error:
        raise ModelSourceError(error.message, error.hint) from error
    if not names:
        raise ModelSourceError(f"Expected class names in '{path}', found none.", _FORMS)
    return names


def _from_file(path: Path) -> tuple[str, ...]:
    text = read_text(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _from_json(text, path)
    if suffix in (".csv", ".tsv"):
        return _from_table(text, path)
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _folders(path: Path) -> tuple[str, ...]:
    names = [entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if not names:
        raise ModelSourceError(f"Expected a folder for each class in '{path}', found none.", _FORMS)
    plain, natural = sorted(names), sorted(names, key=_natural)
    if plain != natural:
        index = next(i for i, (one, other) in enumerate(zip(plain, natural, strict=True)) if one != other)
        raise ModelSourceError(
            f"The folders of '{path}' have two orders: class {index} is '{plain[index]}' for torchvision, which sorts "
            f"them as text, and '{natural[index]}' for timm, which sorts numbers by value and ignores case.",
            "Write the names in the order of the training to a file, one a line, and give that.",
        )
    return tuple(plain)


def _natural(name: str) -> list[Any]:
    # As timm.data.readers' natural_key.
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def _from_json(text: str, path: Path) -> tuple[str, ...]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ModelSourceError(f"Expected class names in '{path}', found no JSON: {error}.", _FORMS) from error
    if isinstance(data, Mapping) and isinstance(data.get("id2label"), Mapping):
        data = data["id2label"]
    if isinstance(data, list) and all(isinstance(name, str) for name in data):
        return tuple(data)
    if isinstance(data, Mapping) and all(_is_index(key) for key in data) and _are_texts(data.values()):
        return _ordered([(int(key), str(name)) for key, name in data.items()], path)
    if isinstance(data, Mapping) and all(isinstance(index, int) for index in data.values()):
        return _ordered([(index, name) for name, index in data.items()], path)
    raise ModelSourceError(f"Expected class names in '{path}', found {_described(data)}.", _FORMS)


def _from_table(text: str, path: Path) -> tuple[str, ...]:
    rows = read_table(text, path)
    columns = {name.lower(): name for name in (rows[0][1] if rows else {})}
    name = next((columns[column] for column in _NAME_COLUMNS if column in columns), None)
    index = next((columns[column] for column in _INDEX_COLUMNS if column in columns), None)
    if name is None:
        raise ModelSourceError(
            f"Expected a column 'name' in '{path}', found {listed(list(columns)) or 'no rows'}.", _FORMS
        )
    if index is None:
        return tuple(cells[name].strip() for _, cells in rows)
    wrong = next((f"{where}: '{cells[index]}'" for where, cells in rows if not _is_index(cells[index].strip())), None)
    if wrong is not None:
        raise ModelSourceError(f"Expected an index in '{path}', {wrong}.", "Count the classes from 0.")
    return _ordered([(int(cells[index]), cells[name].strip()) for _, cells in rows], path)


def _ordered(entries: list[tuple[int, str]], path: Path) -> tuple[str, ...]:
    numbers = sorted(index for index, _ in entries)
    if numbers != list(range(len(entries))):
        raise ModelSourceError(
            f"Expected the indices 0 to {len(entries) - 1} for the {len(entries)} classes of '{path}', found "
            f"{listed([str(number) for number in numbers])}.",
            "Count the classes from 0 and leave none out.",
        )
    return tuple(name for _, name in sorted(entries))


def _is_index(key: object) -> bool:
    return isinstance(key, str) and key.isdecimal()


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _described(data: Any) -> str:
    return "a list of something else" if isinstance(data, list) else f"{type(data).__name__} of another form"
