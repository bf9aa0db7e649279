"""Loading models: a hub id, a Hugging Face directory, or a timm name, directory or checkpoint.

Nothing heavy is imported until :func:`load_model` is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Protocol, cast

from vitexport.errors import MissingDependencyError
from vitexport.host.sources.families import generic_note, is_known
from vitexport.host.sources.loaded import LoadedModel
from vitexport.source import ModelSource

if TYPE_CHECKING:
    from vitexport.recipe.settings import ModelSettings

__all__ = ["LoadedModel", "load_model"]

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
        ModelSourceError: The checkpoint is missing, incomplete, untrusted, or does not take images alone.
        MissingDependencyError: torch, timm or transformers is not installed.
    """
    source = ModelSource.parse(settings.source)
    path, package = _LIBRARIES[source.library]
    missing = next((name for name in ("torch", package) if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        raise MissingDependencyError(missing, "host", f"Loading '{settings.source}'")
    loaded = cast(_Library, importlib.import_module(path)).load(source, settings, image_size)
    if not is_known(loaded.metadata.model.family):
        _LOG.warning("%s", generic_note(loaded.metadata.model))
    return loaded
