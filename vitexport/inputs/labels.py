"""The target of each image, that is its true class, from a labels file or from class folders.

A labels file is JSON in one of three forms: ``{"images": [{"file": ..., "label": 3}, ...]}`` (a manifest),
``{"file name": 3, ...}``, or ``{"synset": {"index": 3, ...}, ...}`` where a file name starts with the synset and an
underscore (ImageNet). Without a file, class folders are numbered in sorted order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitexport.errors import ImageError

__all__ = ["find_targets"]


def find_targets(folder: Path, paths: Sequence[Path], labels_file: Path | None = None) -> tuple[int, ...] | None:
    """Find the class index of every image.

    Args:
        folder: The image folder the paths were listed from.
        paths: The images.
        labels_file: JSON file in one of the forms above; None looks for ``manifest.json`` in the folder and its parent,
            then for class folders.

    Returns:
        One index per path, or None when the images are unlabelled.

    Raises:
        ImageError: The file cannot be read, or does not cover every image.
    """
    if labels_file is None:
        beside = (folder / "manifest.json", folder.parent / "manifest.json")
        labels_file = next((path for path in beside if path.is_file()), None)
    if labels_file is not None:
        lookup = _read_labels(labels_file)
        return tuple(_label_of(path, folder, labels_file, lookup) for path in paths)
    parents = [path.relative_to(folder).parts[:-1] for path in paths]
    if not all(len(parts) == 1 for parts in parents):
        return None
    classes = {name: index for index, name in enumerate(sorted({parts[0] for parts in parents}))}
    return tuple(classes[parts[0]] for parts in parents)


def _read_labels(path: Path) -> Mapping[str, int]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if "images" in data:
            return _with_bare_names({str(entry["file"]): int(entry["label"]) for entry in data["images"]})
        return {key: _index(value) for key, value in data.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(
            f"Expected labels in '{path}', found: {error!r}",
            'Write {"images": [{"file": "a.png", "label": 3}]} or {"a.png": 3} or {"synset": {"index": 3}}.',
        ) from error


def _with_bare_names(labels: Mapping[str, int]) -> dict[str, int]:
    """Add every file's bare name, unless files of that name in several folders have different labels."""
    by_name: dict[str, set[int]] = {}
    for file, label in labels.items():
        by_name.setdefault(Path(file).name, set()).add(label)
    return {name: found.pop() for name, found in by_name.items() if len(found) == 1} | dict(labels)


def _index(value: Any) -> int:
    return int(value["index"] if isinstance(value, Mapping) else value)


def _label_of(path: Path, folder: Path, labels_file: Path, lookup: Mapping[str, int]) -> int:
    relative = path.relative_to(folder)
    inside = f"{folder.name}/{relative.as_posix()}"
    for key in (relative.as_posix(), inside, path.name, path.stem, path.name.partition("_")[0], *relative.parts[:-1]):
        if key in lookup:
            return lookup[key]
    raise ImageError(
        f"Expected a label for '{relative}' in '{labels_file}', found none.",
        "Add the file name, or leave the image out of the folder.",
    )
