"""How labels of images match a model's classes, before anything runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from vitexport.bundle.bundle import BUNDLE_FILE
from vitexport.bundle.target import resolve_target
from vitexport.errors import ImageError
from vitexport.files import as_path
from vitexport.inputs.images import list_images
from vitexport.inputs.labels.class_names import read_class_names
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.find import find_labels
from vitexport.inputs.labels.rows import Columns
from vitexport.inputs.labels.targets import Labels, Target
from vitexport.recipe.load import validated
from vitexport.recipe.settings import ModelSettings
from vitexport.runtimes import open_runtime
from vitexport.scoring import Scoring
from vitexport.tables import Table, Tabular

__all__ = ["MatchedLabels", "labels"]


@dataclass(frozen=True, repr=False)
class MatchedLabels(Tabular):
    """What the labels of a folder of images mean to a model.

    Attributes:
        folder: Where the images are.
        images: How many there are.
        labels: Targets, mapping, and how they were found.
    """

    folder: Path
    images: int
    labels: Labels

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        found = self.labels
        facts = {"folder": str(self.folder), "images": self.images, "origin": found.origin, "rule": found.rule}
        return {**facts, "notes": list(found.notes), "mapping": [asdict(entry) for entry in found.mapping]}

    def tables(self) -> tuple[Table, ...]:
        """Return one row per label: as written, class index and name, count of images, what made them match."""
        title = f"{self.images} images in {self.folder}: {self.labels}"
        if not self.labels.mapping:
            values = Counter(self.labels.targets)
            rows = tuple((_in_numbers(value), str(values[value])) for value in sorted(values, key=_numbers))
            return (Table(title, ("value", "images"), rows),)
        rows_of_labels = tuple(
            (entry.value, "-" if entry.index is None else str(entry.index), entry.name, str(entry.images), entry.rule)
            for entry in self.labels.mapping
        )
        return (
            Table(title, ("label", "index", "class", "images", "matched by"), rows_of_labels, ("class", "matched by")),
        )


def labels(
    images: str | PathLike[str],
    model: str | PathLike[str],
    *,
    labels: str | PathLike[str] | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    class_names: str | PathLike[str] | None = None,
    scoring: Scoring | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> MatchedLabels:
    """Say which class of a model each label of a folder of images is taken for; runs nothing.

    Example::

        print(vx.labels("calib/holdout", "out/quickstart"))

    Args:
        images: Folder of images.
        model: Model file, bundle, or a source as :func:`vitexport.run` takes it; of a Hugging Face source the weights
            are not loaded.
        labels: File with the label of each image (CSV, TSV, JSON, JSON Lines); None looks for ``manifest.json`` and
            ``metadata.csv`` in and beside the folder, then for class folders, then for synsets in the file names.
        file_column: Column of the file names in a table of labels; None takes a usual name.
        label_column: Column of the labels.
        class_names: File with the class names in the order of the outputs; None takes those of the model.
        scoring: ``softmax``, ``sigmoid`` or ``none`` for a source; None takes what the checkpoint says.
        revision: Hub branch, tag or commit of a source.
        allow_pickle: Accept a pickle checkpoint (still loaded with ``weights_only=True``).

    Returns:
        The match, or an error as a run would give it.

    Raises:
        ImageError: The images have no labels, or such as do not fit the model.
        ModelSourceError: The checkpoint cannot be read, or the class names are not one for each of its outputs.
    """
    folder = as_path(images, "a folder of images")
    names = None if class_names is None else as_path(class_names, "class names")
    asked = {"source": str(model), "scoring": scoring, "revision": revision, "allow_pickle": allow_pickle}
    paths = list_images(folder)
    classes = _classes(validated(ModelSettings, {**asked, "class_names": names}, where="model"))
    file = None if labels is None else as_path(labels, "a labels file")
    found = find_labels(folder, paths, classes, file, Columns(file_column, label_column))
    if found is None:
        raise ImageError(
            f"Expected labels for the images in '{folder}', found none.",
            "Give --labels FILE, put a manifest.json beside the images, or use one folder per class.",
        )
    return MatchedLabels(folder, len(paths), found)


def _numbers(target: Target) -> tuple[float, ...]:
    return target if isinstance(target, tuple) else (target,)


def _in_numbers(target: Target) -> str:
    return ", ".join(f"{value:g}" for value in _numbers(target))


def _classes(settings: ModelSettings) -> Classes:
    path = Path(settings.source)
    if not path.is_file() and not (path / BUNDLE_FILE).is_file():
        from vitexport.host.sources import describe_classes

        return describe_classes(settings)
    target = resolve_target(path, check_files=False)
    if target.bundle is not None:
        classes = target.bundle.metadata.classes
    else:
        with open_runtime(path) as opened:
            classes = target.metadata(opened.metadata).classes
    if classes is None:
        raise ImageError(f"Expected a classifier for labels, found '{path}', which is none.", "Name another model.")
    if settings.class_names is None:
        return classes
    return classes.with_names(read_class_names(settings.class_names), where=str(settings.class_names))
