"""Where the labels of images are: a file, class folders, or synsets in the names of the files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from vitexport.errors import ImageError
from vitexport.files import sha256_file
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.match import RULES, Matching, match
from vitexport.inputs.labels.read import read_labels
from vitexport.inputs.labels.resolve import resolve
from vitexport.inputs.labels.rows import Columns, Written, is_label_column
from vitexport.inputs.labels.targets import Labels
from vitexport.inputs.labels.wording import listed

__all__ = ["NO_LABELS", "LabelsFile", "find_labels", "labels_fingerprint"]

NO_LABELS: Literal["none"] = "none"
"""Instead of a labels file: the images have no labels, whatever their folders are called."""

LabelsFile = Path | Literal["none"] | None

_MANIFEST = "manifest.json"
_METADATA = ("metadata.csv", "metadata.jsonl")
_SYNSET = re.compile(r"(?<![A-Za-z0-9])(n\d{8})(?!\d)")


def find_labels(
    folder: Path,
    paths: Sequence[Path],
    classes: Classes | None,
    labels_file: LabelsFile = None,
    columns: Columns = Columns(),  # noqa: B008  # frozen
) -> Labels | None:
    """Find what is true of every image.

    Args:
        folder: The image folder the paths were listed from.
        paths: The images.
        classes: The outputs of the model; None for a model that is no classifier.
        labels_file: See :mod:`vitexport.inputs.labels.read`; None looks for ``manifest.json``, ``metadata.csv`` and
            ``metadata.jsonl`` in the folder and its parent, then for class folders, then, of an ImageNet model, for
            synsets in the file names; ``none`` for images without labels.
        columns: Which columns of a table to read.

    Returns:
        One target per image, or None when the images are unlabelled.

    Raises:
        ImageError: Labels cannot be read, do not cover every image, or do not fit the model.
    """
    if str(labels_file) == NO_LABELS:
        return None
    if classes is None:
        if labels_file is not None:
            raise ImageError(
                f"Expected a classifier for the labels in '{labels_file}', found a model without classes.",
                "Leave the labels out, or export with --task classify.",
            )
        return None
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    file = labels_file or _beside(folder)
    if columns != Columns() and not isinstance(file, Path):
        raise ImageError(
            f"Expected a table of labels for the column '{columns.label or columns.file}', found no labels file for "
            f"'{folder}'.",
            "Name the table with --labels, or leave the column out.",
        )
    if isinstance(file, Path):
        written = _Lookup(file, read_labels(file, columns, classes)).of(names)
        beside = labels_file is None and file.parent != folder
        origin = f"{file.name} beside the folder" if beside else file.name
        return resolve(written, classes, what=f"labels in '{file}'", origin=origin)
    return _class_folders(folder, tuple(names.values()), classes) or _file_names(tuple(names.values()), classes)


def labels_fingerprint(folder: Path, labels_file: LabelsFile, columns: Columns) -> str:
    """Return a hash of what :func:`find_labels` reads beside the paths of the images.

    Raises:
        ImageError: The labels file is not there.
    """
    file = labels_file or _beside(folder)
    content = str(file)
    if isinstance(file, Path):
        if not file.is_file():
            raise ImageError(f"Expected labels at '{file}', found no file.", "Correct the path.")
        content = sha256_file(file)
    return hashlib.sha256(repr((content, columns)).encode()).hexdigest()


def _beside(folder: Path) -> Path | None:
    """Return the labels file that lies in or beside an image folder."""
    for place in (folder, folder.parent):
        for name in (_MANIFEST, *_METADATA):
            if (place / name).is_file() and (name == _MANIFEST or _names_labels(place / name)):
                return place / name
    return None


def _names_labels(path: Path) -> bool:
    """Whether the first line of a table that may hold anything names a column for labels."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        first = stream.readline()
    if path.suffix == ".csv":
        return any(is_label_column(cell.strip("\"' \r\n")) for cell in re.split(r"[,;\t|]", first))
    try:
        keys = json.loads(first)
    except ValueError:
        return "label" in first  # to be read, and refused with its place
    return isinstance(keys, dict) and any(map(is_label_column, keys))


class _Lookup:
    """The labels of a file by every name that an image may go by there."""

    def __init__(self, file: Path, labels: Mapping[str, Written]) -> None:
        self._file = file
        self._labels = {_plain(key): value for key, value in labels.items()}
        # An entry may be written with folders of another place, unless entries of that ending have different labels.
        self._by_ending: dict[str, list[str]] = {}
        for key in self._labels:
            for ending in _endings(PurePosixPath(key)):
                self._by_ending.setdefault(ending, []).append(key)

    def of(self, images: Mapping[Path, str]) -> dict[str, Written]:
        """Return the label of each image, by its name relative to the folder."""
        found: dict[str, Written] = {}
        missing = []
        named: dict[str, str] = {}
        for path, name in images.items():
            key = self._key_of_file(path.absolute())
            if key is not None and named.setdefault(key, name) != name:
                raise ImageError(
                    f"Expected one image that '{key}' in '{self._file}' names, found '{named[key]}' and '{name}'.",
                    "Write the folder of each image with its name.",
                )
            label = self._of_group(path, name) if key is None else self._labels[key]
            if label is None:
                missing.append(f"'{name}'")
            else:
                found[name] = label
        if missing:
            raise ImageError(
                f"Expected a label for {listed(missing)} in '{self._file}', found none.",
                "Add the file name, or leave the image out of the folder.",
            )
        return found

    def _key_of_file(self, path: Path) -> str | None:
        """Return the entry of an image: by its path, by an end of it, or by the longest end that both share."""
        endings = _endings(path)
        names = (path.as_posix(), *endings, *(ending.removesuffix(path.suffix) for ending in endings))
        named = next((name for name in names if name in self._labels), None)
        if named is not None:
            return named
        shared = next((self._by_ending[name] for name in names if name in self._by_ending), [])
        return shared[0] if shared and len({self._labels[key] for key in shared}) == 1 else None

    def _of_group(self, path: Path, name: str) -> Written | None:
        """Return the label of the folder or the synset that an image belongs to."""
        inside = name.split("/")[:-1]
        synset = _SYNSET.search(path.name)
        for key in (path.name.partition("_")[0], synset.group(1) if synset else "", *reversed(inside)):
            if key in self._labels:
                return self._labels[key]
        return None


def _endings(path: PurePath) -> list[str]:
    """Return the path without its root, without its first part, and so on; the bare name last."""
    parts = path.parts[1:] if path.is_absolute() else path.parts
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _plain(key: str) -> str:
    return key.strip().replace("\\", "/").removeprefix("./").rstrip("/")


def _class_folders(folder: Path, names: Sequence[str], classes: Classes) -> Labels | None:
    """Read the folder each image lies in: the first below ``folder``, or of deeper trees the last."""
    parents = {name: name.split("/")[:-1] for name in names}
    inside = {name: parts for name, parts in parents.items() if parts}
    what = f"class folders of '{folder}'"
    if not inside or classes.scoring == "none" and not _are_numbers(parts[0] for parts in inside.values()):
        return None
    if len(inside) < len(names):
        outer = match((parts[0] for parts in inside.values()), classes)
        if _names_some(outer):
            outer.require(what, classes)
            beside = [f"'{name}'" for name in names if name not in inside]
            raise ImageError(
                f"Expected every image in one of the {what}, found {len(beside)} beside them: {listed(beside)}.",
                "Move them into folders, or say that the images have no labels: --labels none.",
            )
        return None
    deep = any(len(parts) > 1 for parts in inside.values())
    levels = [{name: parts[level] for name, parts in inside.items()} for level in ((0, -1) if deep else (0,))]
    written = max(levels, key=lambda level: _strictness(match(level.values(), classes)))
    chosen = match(written.values(), classes)
    if deep and not chosen.complete and not _names_some(chosen):
        return None
    try:
        found = resolve(written, classes, what=what, origin="class folders")
    except ImageError as error:
        raise ImageError(error.message, f"{error.hint} --labels none says that folders are no classes.") from error
    if not deep:
        _refuse_twins(found, what)
    return found


def _names_some(matching: Matching) -> bool:
    """Whether a value is the name of a class: then folders are meant as classes, and the others are typos."""
    return any(rule != "index" for _, rule in matching.found.values())


def _strictness(matching: Matching) -> tuple[bool, int, int]:
    """Return what makes one level of folders the better reading: complete, by a stricter rule, with more names."""
    loosest = max((RULES.index(rule) for _, rule in matching.found.values()), default=len(RULES))
    return matching.complete, -loosest, len(matching.found)


def _are_numbers(names: Iterable[str]) -> bool:
    return all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name) for name in names)


def _refuse_twins(found: Labels, what: str) -> None:
    """Refuse two folders of one class: one of them is likely to be another's."""
    by_index: dict[int | None, list[str]] = {}
    for entry in found.mapping:
        by_index.setdefault(entry.index, []).append(f"'{entry.value}'")
    twins = [" and ".join(values) for values in by_index.values() if len(values) > 1]
    if twins:
        raise ImageError(
            f"Expected the {what} to be different classes, found for one class each: {listed(twins)}.",
            "Rename or merge them.",
        )


def _file_names(names: Sequence[str], classes: Classes) -> Labels | None:
    """Read the synset in each file name, as ImageNet's files have one, of a model that knows synsets."""
    hits = {name: _SYNSET.search(name.rpartition("/")[2]) for name in names}
    if not all(hits.values()) or classes.scoring == "none":
        return None
    written = {name: hit.group(1) for name, hit in hits.items() if hit}
    matching: Matching = match(written.values(), classes)
    if not matching.found:
        return None
    return resolve(written, classes, what="synsets in the file names", origin="synsets in the file names")
