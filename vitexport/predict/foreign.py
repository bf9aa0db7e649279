"""What a model file of another tool does not carry, said by whoever opens it: preprocessing, class names, scoring."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import yaml
from pydantic import ValidationError

from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.bundle.target import Target
from vitexport.errors import BundleError, RecipeError
from vitexport.extras import names_missing_extras
from vitexport.files import sha256_file
from vitexport.inputs.labels.class_names import read_class_names
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.layout import image_layout
from vitexport.inputs.preprocess import PreprocessSpec, from_pixels
from vitexport.runtimes import Runtime
from vitexport.runtimes.record import run_rows
from vitexport.scoring import Scoring, default_scoring, require_scoring
from vitexport.tensors import Array, TensorSpec, batch_limit

__all__ = ["ClassNames", "Preprocess", "class_names_from", "describe", "preprocess_from"]

Preprocess: TypeAlias = "PreprocessSpec | Mapping[str, object] | str | PathLike[str]"
"""A specification, the same as a mapping, or a file that holds one."""

ClassNames: TypeAlias = "Sequence[str] | PathLike[str]"
"""Names in the order of the outputs (as a list, or any sequence but text), or the path of a file of them."""

_SUM_TO_ONE = 5e-3
"""How far from 1 the sum of probabilities may be, which float16 rounds."""


def class_names_from(given: ClassNames | str) -> tuple[str, ...]:
    """Return class names as they were given, or read from the file that was named.

    Raises:
        RecipeError: The file cannot be read.
    """
    return read_class_names(Path(given)) if isinstance(given, str | PathLike) else tuple(map(str, given))


def preprocess_from(given: Preprocess) -> PreprocessSpec:
    """Return a preprocessing as it was given, or read from a JSON or YAML file.

    Args:
        given: A specification, a mapping of its settings, or a file with those; the ``preprocessor_config.json`` of
            transformers is a file too, and is read by that library.

    Raises:
        RecipeError: The file cannot be read, or settings are missing or wrong.
        ModelSourceError: A preprocessor_config.json does what a specification cannot say.
        MissingDependencyError: It is one, and transformers is not installed.
    """
    if isinstance(given, PreprocessSpec):
        return given
    where = "the preprocessing"
    if isinstance(given, str | PathLike):
        where = f"'{given}'"
        given = _settings_in(Path(given))
        if isinstance(given, PreprocessSpec):
            return given
    try:
        return PreprocessSpec.model_validate(given)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'all'}: {e['msg']}" for e in error.errors())
        raise RecipeError(
            f"Expected the settings of a preprocessing in {where}, found {found}.",
            "Give at least image_size, resize, mean and std; docs/models.md shows a file.",
        ) from error


def _settings_in(path: Path) -> Mapping[str, object] | PreprocessSpec:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML as well
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(
            f"Expected a preprocessing in '{path}', found: {error}", "Give a JSON or YAML file."
        ) from error
    if not isinstance(data, Mapping):
        raise RecipeError(
            f"Expected a preprocessing in '{path}', found {type(data).__name__}.", "Give a mapping of its settings."
        )
    is_processor = {"image_processor_type", "feature_extractor_type", "do_resize", "do_normalize"} & data.keys()
    return _processor(data) if is_processor else data


@names_missing_extras("Reading a preprocessor_config.json")
def _processor(data: Mapping[str, object]) -> PreprocessSpec:
    from vitexport.host.sources.huggingface_preprocess import resolve_preprocess

    with tempfile.TemporaryDirectory(prefix="vitexport-") as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(data), encoding="utf-8")
        return resolve_preprocess(Path(folder), None)


def describe(
    target: Target,
    runtime: Runtime,
    preprocess: Preprocess | None = None,
    class_names: ClassNames | str | None = None,
    scoring: Scoring | None = None,
    *,
    order_only: bool = False,
) -> tuple[ModelMetadata, tuple[str, ...]]:
    """Describe an opened model by what it carries and by what it is given.

    A file of another tool, which carries nothing, is run once on a grey image to see what it answers.

    Args:
        target: The bundle or file.
        runtime: The opened model.
        preprocess: What turns an image into its input; only for a file that does not say so.
        class_names: Names by output index; None takes the model's own.
        scoring: What makes scores of the outputs; None takes what the model says. One that says nothing is taken as it
            is where its outputs are probabilities already, or else by ``sigmoid`` for a single output and ``softmax``
            for several.
        order_only: Whether nothing but the order of the scores is asked for, as by labels: then probabilities stay the
            softmax's that they come from, which keeps their order, and are not taken for values.

    Returns:
        The metadata, and what a person should know about it.

    Raises:
        BundleError: The file carries nothing and no ``preprocess`` is given, or it takes no single batch of images.
        RecipeError: The preprocessing gives other images than it takes, or there are more or fewer names than outputs.
        InferenceError: It does not run.
    """
    names = None if class_names is None else class_names_from(class_names)
    where = str(class_names) if isinstance(class_names, str | PathLike) else ""
    if target.bundle is None and preprocess is not None and not ModelMetadata.is_in(runtime.metadata):
        found, notes = _describe_file(runtime, target.path, preprocess_from(preprocess), names or (), scoring)
        return (replace(found, scoring="softmax"), ()) if order_only and notes else (found, notes)
    return _told(target.metadata(runtime.metadata), preprocess, names, scoring, where), ()


def _told(
    metadata: ModelMetadata,
    preprocess: Preprocess | None,
    names: tuple[str, ...] | None,
    scoring: Scoring | None,
    where: str,
) -> ModelMetadata:
    """Return what a model carries, with the names and the scoring that were given in the place of its own."""
    if preprocess is not None:
        raise RecipeError(
            f"Expected a preprocessing for a file that carries none, found one for '{metadata.model.id}'.",
            "Leave it out (--preprocess): the model carries its own.",
        )
    model = metadata.model
    shape = model.outputs[0].shape
    require_scoring(scoring, model.task, shape[-1], model.id)
    # One name per class: of a map the classes are the second axis, and depth and features have none.
    classes = {"classify": shape[-1], "segment": shape[1]}.get(model.task)
    if names is not None and classes is None:
        raise RecipeError(
            f"Expected a model with classes for the class names, found '{model.id}', one for the task {model.task}.",
            "Leave the class names out.",
        )
    if names is not None and isinstance(classes, int):
        names = Classes(classes, metadata.class_names).with_names(names, where=where).names
    own = metadata.class_names if names is None else names
    return replace(metadata, class_names=own, scoring=scoring or metadata.scoring)


def _describe_file(
    runtime: Runtime, path: Path, preprocess: PreprocessSpec, class_names: Sequence[str], scoring: Scoring | None
) -> tuple[ModelMetadata, tuple[str, ...]]:
    tensor = _image_input(runtime, path, preprocess)
    outputs = _answer(runtime, tensor, preprocess)
    vectors = next((outputs[spec.name] for spec in runtime.outputs if outputs[spec.name].ndim == 2), None)
    width = 0 if vectors is None else vectors.shape[1]
    if class_names and len(class_names) != width:
        raise RecipeError(
            f"Expected {width} class name{'s' * (width != 1)} for the outputs of '{path}', found {len(class_names)}.",
            "Give one name per output, in order.",
        )
    require_scoring(scoring, "features" if vectors is None else "classify", width, str(path))
    notes: tuple[str, ...] = ()
    if scoring is None and vectors is not None and width > 1 and _are_probabilities(vectors):
        scoring = "none"
        notes = ("the outputs are probabilities already and are taken as they are (as with --scoring none)",)
    spec = ModelSpec(
        source="onnx",
        id=path.stem,
        revision=f"sha256:{sha256_file(path)}",
        family="unknown",
        task="features" if vectors is None else "classify",
        inputs=runtime.inputs,
        outputs=runtime.outputs,
    )
    return ModelMetadata(spec, preprocess, tuple(class_names), scoring or default_scoring(width)), notes


def _image_input(runtime: Runtime, path: Path, preprocess: PreprocessSpec) -> TensorSpec:
    described = ", ".join(spec.describe() for spec in runtime.inputs)
    layout = image_layout(runtime.inputs[0]) if len(runtime.inputs) == 1 else None
    if layout is None:
        raise BundleError(
            f"Expected '{path}' to take one batch of images [N, 3, H, W] or [N, H, W, 3], found {described}.",
            "Cut the graph so that images are its only input.",
        )
    tensor = runtime.inputs[0]
    fixed = tensor.shape[layout.height : layout.height + 2]
    if any(isinstance(axis, int) and axis != size for axis, size in zip(fixed, preprocess.image_size, strict=True)):
        raise RecipeError(
            f"Expected a preprocessing to the size of {described}, found image_size {list(preprocess.image_size)}.",
            "Set image_size, and the resize or crop with it, to height and width of the input.",
        )
    return tensor


def _answer(runtime: Runtime, tensor: TensorSpec, preprocess: PreprocessSpec) -> dict[str, Array]:
    grey = np.full((1, *preprocess.image_size, preprocess.channels), 127, dtype=np.uint8)
    size = batch_limit(tensor)
    return run_rows(runtime, from_pixels(grey, preprocess, tensor), size, pad=size is not None)


def _are_probabilities(vectors: Array) -> bool:
    values = vectors.astype(np.float64)
    return bool(values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() <= _SUM_TO_ONE)
