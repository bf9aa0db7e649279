"""Loading models: a hub id, a Hugging Face directory, or a timm name, directory or checkpoint.

Nothing heavy is imported until :func:`load_model` is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

from vitexport.errors import MissingDependencyError, ModelSourceError
from vitexport.host.sources.families import generic_note, is_known
from vitexport.host.sources.imagenet import synsets_of
from vitexport.host.sources.loaded import LoadedModel
from vitexport.inputs.labels.class_names import read_class_names
from vitexport.inputs.labels.classes import Classes
from vitexport.scoring import require_scoring
from vitexport.source import ModelSource

if TYPE_CHECKING:
    from vitexport.recipe.settings import ModelSettings

__all__ = ["LoadedModel", "describe_classes", "load_model"]

_LOG = logging.getLogger(__name__)

# library of the source -> (module with `load`, the package it needs)
_LIBRARIES = {
    "timm": ("vitexport.host.sources.timm", "timm"),
    "huggingface": ("vitexport.host.sources.huggingface", "transformers"),
}


class _Library(Protocol):
    def load(self, source: ModelSource, settings: ModelSettings, image_size: tuple[int, int] | None) -> LoadedModel: ...


def load_model(settings: ModelSettings, *, image_size: tuple[int, int] | None = None) -> LoadedModel:
    """Load a checkpoint with its preprocessing and class names.

    Args:
        settings: Which checkpoint, and for which task.
        image_size: (height, width) in pixels; position embeddings are interpolated as the source library does it. None
            takes the checkpoint's own.

    Returns:
        The model in eval mode, with what it needs beside its weights.

    Raises:
        ModelSourceError: The checkpoint is missing, incomplete, untrusted, or does not take images alone; or the class
            names of the settings are not one for each of its outputs.
        RecipeError: The scoring of the settings means nothing for the model.
        MissingDependencyError: torch, timm or transformers is not installed.
    """
    source = ModelSource.parse(settings.source)
    _require(source, settings)
    loaded = cast(_Library, importlib.import_module(_LIBRARIES[source.library][0])).load(source, settings, image_size)
    model = loaded.metadata.model
    require_scoring(settings.scoring, model.task, model.outputs[0].shape[-1], settings.source)
    classes = _named(loaded.metadata.classes, settings)
    if classes is not None:
        metadata = replace(loaded.metadata, class_names=classes.names, synsets=classes.synsets)
        loaded = replace(loaded, metadata=metadata)
    if not is_known(loaded.metadata.model.family):
        _LOG.warning("%s", generic_note(loaded.metadata.model))
    return loaded


def describe_classes(settings: ModelSettings) -> Classes:
    """Return the classes of a checkpoint; of a Hugging Face one without loading its weights.

    Args:
        settings: As for :func:`load_model`.

    Raises:
        ModelSourceError: As of :func:`load_model`; or it is no classifier.
        MissingDependencyError: The checkpoint's library is not installed.
    """
    source = ModelSource.parse(settings.source)
    if source.library == "huggingface" and settings.task in (None, "classify"):
        _require(source, settings)
        from vitexport.host.sources.huggingface import classes_of

        classes = _named(classes_of(source, settings), settings)
    else:
        classes = load_model(settings).metadata.classes
    if classes is None:
        raise ModelSourceError(
            f"Expected a classifier, found '{settings.source}', which is none.",
            "Name a checkpoint with a classification head.",
        )
    return classes


def _require(source: ModelSource, settings: ModelSettings) -> None:
    """Refuse a source whose library is not installed."""
    package = _LIBRARIES[source.library][1]
    missing = next((name for name in ("torch", package) if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        raise MissingDependencyError(missing, "host", f"Loading '{settings.source}'")


def _named(classes: Classes | None, settings: ModelSettings) -> Classes | None:
    """Return the classes under the names of the settings, if any, with the synsets that the names belong to."""
    file = settings.class_names
    if classes is None:
        if file is None:
            return None
        raise ModelSourceError(
            f"Expected a classifier for the class names in '{file}', found '{settings.source}', which is exported as "
            "none.",
            "Leave the class names out, or export with --task classify.",
        )
    if file is not None and classes.names:
        _LOG.warning("The class names in '%s' take the place of those of '%s'.", file, settings.source)
    if file is not None:
        classes = classes.with_names(read_class_names(file), where=str(file))
    return replace(classes, synsets=synsets_of(classes.names))
