"""Hugging Face checkpoints: hub ids and local directories."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.errors import ModelSourceError
from vitexport.host.sources.baked import bake_positions
from vitexport.host.sources.channels import huggingface_channels
from vitexport.host.sources.families import family_of
from vitexport.host.sources.hub import fetch
from vitexport.host.sources.huggingface_preprocess import resolve_preprocess
from vitexport.host.sources.loaded import LoadedModel
from vitexport.host.sources.weights import content_revision, weight_files
from vitexport.host.sources.wrapping import ImageModel, Named, pixel_values_spec
from vitexport.recipe.settings import ModelSettings, Task
from vitexport.scoring import Scoring, default_scoring
from vitexport.source import ModelSource

__all__ = ["class_names_of", "load", "make_call", "scoring_of"]

# Two-tower checkpoints: the class of the tower that sees images.
_TOWERS = {
    "CLIPModel": "CLIPVisionModelWithProjection",
    "CLIPVisionModel": "CLIPVisionModel",
    "CLIPVisionModelWithProjection": "CLIPVisionModelWithProjection",
    "SiglipModel": "SiglipVisionModel",
    "SiglipVisionModel": "SiglipVisionModel",
}

_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError, SafetensorError)


def load(source: ModelSource, settings: ModelSettings, image_size: tuple[int, int] | None) -> LoadedModel:
    """Load a hub id or a local directory; see :func:`vitexport.host.sources.load_model`."""
    folder, identity, revision = _locate(source, settings)
    files = weight_files(folder, allow_pickle=settings.allow_pickle)
    config = _config(folder, identity)
    model, task = _model(folder, identity, config, settings)
    preprocess = resolve_preprocess(folder, image_size, huggingface_channels(config))
    module = ImageModel(model, make_call(model, task, preprocess.image_size))
    spec = ModelSpec(
        source="huggingface",
        id=identity,
        revision=revision or content_revision(files),
        family=family_of(config.model_type, source="huggingface") or str(config.model_type),
        task=task,
        inputs=(pixel_values_spec(preprocess),),
        outputs=bake_positions(module, preprocess, where=identity),
    )
    names = class_names_of(config) if task == "classify" else ()
    return LoadedModel(module, ModelMetadata(spec, preprocess, names, settings.scoring or scoring_of(config)))


def _locate(source: ModelSource, settings: ModelSettings) -> tuple[Path, str, str | None]:
    """Return (directory, id, hub commit or None)."""
    folder = source.path
    if folder is not None and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelSourceError(
                f"Expected a Hugging Face directory at '{folder}', but it has no config.json.",
                "Save the model and its image processor there with save_pretrained().",
            )
        return folder, folder.resolve().name, None
    if folder is not None or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source.name):
        raise ModelSourceError(
            f"Expected a hub id (owner/name), a directory or timm:NAME, found '{settings.source}', which is neither.",
            "Correct the path, or see `vitexport models` for what can be named.",
        )
    folder, commit = fetch(source.name, settings.revision, allow_pickle=settings.allow_pickle)
    return folder, source.name, commit


def _config(folder: Path, identity: str) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise ModelSourceError(
            f"The config.json of '{identity}' describes no model of transformers {transformers.__version__}: {error}",
            "Code from a checkpoint is never run; update transformers, or convert the checkpoint.",
        ) from error
    if not config.architectures:
        raise ModelSourceError(
            f"Expected 'architectures' in the config.json of '{identity}', found none.",
            "Save it with save_pretrained().",
        )
    return config


def _model(folder: Path, identity: str, config: Any, settings: ModelSettings) -> tuple[Any, Task]:
    """Load the weights into the class that does the task; refuse a checkpoint that lacks some of them."""
    architecture = str(config.architectures[0])
    classifies = "ForImageClassification" in architecture
    task: Task = settings.task or ("classify" if classifies else "features")
    if task == "classify":
        cls = getattr(transformers, architecture) if classifies else transformers.AutoModelForImageClassification
    elif architecture in _TOWERS:
        cls = getattr(transformers, _TOWERS[architecture])
    else:
        cls = transformers.AutoModel
    model, missing = _from_pretrained(cls, folder, identity, settings)
    if missing and task == "features" and all(_is_pooler(name) for name in missing):
        # A classifier was saved without a pooler; transformers would make up a random one.
        model, missing = _from_pretrained(cls, folder, identity, settings, add_pooling_layer=False)
    if missing:
        what = "has no classification head" if task == "classify" and not classifies else "is incomplete"
        raise ModelSourceError(
            f"'{identity}' {what}: the weights {', '.join(sorted(missing)[:3])} are missing.",
            "Use `task: features`." if task == "classify" and not classifies else "Get the complete checkpoint.",
        )
    required = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if set(required) - {"pixel_values"} or "pixel_values" not in inspect.signature(model.forward).parameters:
        raise ModelSourceError(
            f"Expected '{identity}' ({type(model).__name__}) to take pixel_values alone, but it takes "
            f"{', '.join(required)}.",
            "Choose a checkpoint with a fixed image resolution that maps images to tensors.",
        )
    return model.eval(), task


def _is_pooler(name: str) -> bool:
    return name.startswith("pooler.") or ".pooler." in name


def _from_pretrained(
    cls: Any, folder: Path, identity: str, settings: ModelSettings, **extra: Any
) -> tuple[Any, set[str]]:
    try:
        with _quiet():
            model, info = cls.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=None if settings.allow_pickle else True,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **extra,
            )
    except _LOAD_ERRORS as error:
        raise ModelSourceError(
            f"transformers cannot load '{identity}': {error}",
            "Check that config.json and the weights belong together and are complete.",
        ) from error
    mismatched = {str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ())}
    return model, {str(key) for key in info["missing_keys"]} | mismatched


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bar and the report of unused weights off the terminal; missing ones are checked here."""
    logging: Any = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _resolution_keywords(model: Any, image_size: tuple[int, int]) -> dict[str, bool]:
    """Ask for interpolated position embeddings where the model does so only on request and the size is another."""
    own = getattr(model.config, "image_size", None)
    native = (own, own) if isinstance(own, int) else tuple(own or ())
    accepts = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if accepts and native != image_size else {}


def make_call(model: Any, task: Task, image_size: tuple[int, int]) -> Callable[[Any, torch.Tensor], Named]:
    """Return what runs a Hugging Face model for a task and names its outputs."""
    return _Call(task, _resolution_keywords(model, image_size))


class _Call:
    """Runs a Hugging Face model and names its outputs."""

    def __init__(self, task: Task, keywords: dict[str, bool]) -> None:
        self._names = ("logits",) if task == "classify" else ("last_hidden_state", "pooler_output", "image_embeds")
        self._keywords = keywords

    def __call__(self, model: Any, pixel_values: torch.Tensor) -> Named:
        outputs = model(pixel_values=pixel_values, **self._keywords)
        return {name: outputs[name] for name in self._names if outputs.get(name) is not None}


def class_names_of(config: Any) -> tuple[str, ...]:
    """Return the class names, or nothing when the config holds only placeholders."""
    labels = tuple(str(config.id2label[index]) for index in range(len(config.id2label)))
    return () if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else labels


def scoring_of(config: Any) -> Scoring:
    """Return what ``transformers.pipeline("image-classification")`` turns the logits into scores with."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification":
        return "sigmoid"
    return default_scoring(int(config.num_labels))
