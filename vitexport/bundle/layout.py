"""What a bundle holds and where: the name and path of every artifact, and a typed reader for each kind.

Nothing else in the package spells these names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vitexport.bundle.bundle import BUNDLE_FILE, Bundle
from vitexport.bundle.recording import Recording, ReplayInputs
from vitexport.errors import BundleError
from vitexport.inputs.labels.targets import Target, read_targets
from vitexport.recipe.load import parse_recipe
from vitexport.recipe.settings import Recipe

__all__ = [
    "ATTEMPTS",
    "BENCHMARK",
    "CHOSEN",
    "DISAGREEMENTS",
    "ENGINE",
    "ERRORS",
    "EXPORTED",
    "PREPROCESSING",
    "RECIPE",
    "REFERENCE",
    "REPORT",
    "SAMPLES",
    "SIMPLIFIED",
    "analysis_path",
    "benchmark_path",
    "is_bundle",
    "model_path",
    "read_analysis",
    "read_disagreements",
    "read_labels",
    "read_recipe",
    "read_recording",
    "read_replay_inputs",
    "recipe_path",
    "recording_name",
    "recording_path",
    "replay_inputs_path",
]

REFERENCE = "pytorch"
"""The variant that all others are compared with."""

EXPORTED = "onnx"
"""The variant that ``export`` writes."""

SIMPLIFIED = "simplified"
"""The variant that ``simplify`` writes; quantized ones are named after their precision."""

ENGINE = "engine"
"""The variant that a TensorRT engine is, built from one of the others."""

RECIPE = "recipe"
"""The recipe as it was run, with every default filled in."""

BENCHMARK = "benchmark"
"""Latencies, and the precision that each runtime executed."""

REPORT = "report"
"""``report.json``, with ``report.html`` and ``report.md`` beside it."""

PREPROCESSING = "preprocessing"
"""The comparison with the source library's preprocessing, with original image files beside it."""

ERRORS = "errors"
"""Errors of every block and layer."""

DISAGREEMENTS = "disagreements"
"""Pixels of the images that PyTorch and the last variant disagree on most."""

ATTEMPTS = "attempts"
"""Every candidate that a fallback tried, and what became of it."""

SAMPLES = "samples"
"""Folder, beside :data:`PREPROCESSING`, of original image files."""

CHOSEN = "chosen"
"""Detail of a model that was chosen from a larger bundle and packed alone: the notes of that choice."""

_AGAIN = "Copy the bundle again as a whole, or run its recipe again."


def read_recipe(bundle: Bundle) -> Recipe:
    """Read the resolved recipe a bundle was made from.

    Raises:
        BundleError: The bundle has none, or it is no YAML.
        RecipeError: It is no recipe of this version.
    """
    path = bundle.path(bundle.artifact(RECIPE))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BundleError(f"Expected a recipe at '{path}', found: {error}", _AGAIN) from error
    return parse_recipe(content, where=str(path))


def is_bundle(path: Path) -> bool:
    """Return whether ``path`` is a bundle directory."""
    return (path / BUNDLE_FILE).is_file()


def recording_name(variant: str) -> str:
    """Return the artifact name of a variant's recording."""
    return f"recording/{variant}"


def model_path(root: Path, variant: str) -> Path:
    """Return where the model of a variant is written."""
    return root / "models" / f"{variant}.onnx"


def recording_path(root: Path, variant: str) -> Path:
    """Return where a variant's outputs are written."""
    return root / "recordings" / f"{variant}.npz"


def replay_inputs_path(root: Path) -> Path:
    """Return where the inputs are written that travel with the reference recording."""
    return root / "recordings" / "inputs.npz"


def recipe_path(root: Path) -> Path:
    """Return where the recipe is written."""
    return root / "recipe.yaml"


def benchmark_path(root: Path) -> Path:
    """Return where latencies are written."""
    return root / "benchmark.json"


def analysis_path(root: Path, name: str, suffix: str = ".json") -> Path:
    """Return where an analysis such as :data:`ERRORS` is written."""
    return root / "analysis" / f"{name}{suffix}"


def read_recording(bundle: Bundle, variant: str) -> Recording:
    """Read the outputs that were recorded of a variant.

    Raises:
        BundleError: There is no such recording, or it cannot be read.
    """
    return Recording.load(bundle.path(bundle.artifact(recording_name(variant))))


def read_labels(bundle: Bundle) -> tuple[tuple[Target, ...] | None, str]:
    """Return the targets of all images of a bundle, and how they were matched; None and nothing without labels.

    Raises:
        BundleError: The bundle holds no reference recording.
    """
    details = bundle.artifact(recording_name(REFERENCE)).details
    return read_targets(details.get("targets")), str(details.get("labels") or "")


def read_replay_inputs(bundle: Bundle) -> ReplayInputs:
    """Read the inputs that travel with the reference recording of a bundle.

    Raises:
        BundleError: The bundle holds no reference recording.
    """
    reference = bundle.artifact(recording_name(REFERENCE))
    if not reference.companions:
        raise BundleError(
            f"Expected the inputs of '{reference.name}' in the bundle '{bundle.root}', found none.", _AGAIN
        )
    return ReplayInputs.load(bundle.root / reference.companions[0].path)


def read_disagreements(bundle: Bundle) -> ReplayInputs | None:
    """Read the pixels of the images that reference and last variant disagree on; None for a bundle without."""
    found = bundle.find(DISAGREEMENTS)
    return None if found is None else ReplayInputs.load(bundle.path(found))


def read_analysis(bundle: Bundle, name: str) -> Mapping[str, Any] | None:
    """Read a JSON artifact such as :data:`BENCHMARK` or :data:`ERRORS`; None for a bundle without it.

    Raises:
        BundleError: It cannot be read.
    """
    found = bundle.find(name)
    if found is None:
        return None
    path = bundle.path(found)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"'{path}' cannot be read: {error}", _AGAIN) from error
    if not isinstance(content, Mapping):
        raise BundleError(f"Expected a mapping in '{path}', found {type(content).__name__}.", _AGAIN)
    return content
