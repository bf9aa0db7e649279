"""Hugging Face checkpoints: hub ids and local directories."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from safetensors import SafetensorError, safe_open

from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.errors import ModelSourceError
from vitexport.host.sources.baked import bake_positions
from vitexport.host.sources.blocks import BlockOutputs, first_tensor_notes
from vitexport.host.sources.channels import huggingface_channels
from vitexport.host.sources.families import family_of
from vitexport.host.sources.heads import FEATURES, TOWERS, Head, chosen_head, class_of, has_encoder, head_of
from vitexport.host.sources.hub import fetch
from vitexport.host.sources.huggingface_config import class_names_of, misfit, require_head, scoring_of
from vitexport.host.sources.huggingface_preprocess import resolve_preprocess
from vitexport.host.sources.loaded import LoadedModel
from vitexport.host.sources.unmasked import show_every_patch
from vitexport.host.sources.unreadable import LOAD_ERRORS, brief, hint_for, prefix_hint
from vitexport.host.sources.weights import content_revision, weight_files
from vitexport.host.sources.wrapping import Call, ImageModel, Named, pixel_values_spec
from vitexport.inputs.labels.classes import Classes
from vitexport.recipe.settings import ModelSettings
from vitexport.source import ModelSource

__all__ = ["classes_of", "load", "make_call"]

_LOAD_ERRORS = (*LOAD_ERRORS, SafetensorError)


def load(source: ModelSource, settings: ModelSettings, image_size: tuple[int, int] | None) -> LoadedModel:
    """Load a hub id or a local directory; see :func:`vitexport.host.sources.load_model`."""
    folder, identity, revision = _locate(source, settings)
    files = weight_files(folder, allow_pickle=settings.allow_pickle)
    config = _config(folder, identity)
    model, head, notes = _model(folder, identity, config, settings)
    preprocess = resolve_preprocess(folder, image_size, huggingface_channels(config))
    call: Call = make_call(model, () if settings.features else head.outputs, preprocess.image_size)
    if settings.features:
        call = BlockOutputs(model, settings.features, call, where=identity)
    module = ImageModel(model, call)
    spec = ModelSpec(
        source="huggingface",
        id=identity,
        revision=revision or content_revision(files),
        family=family_of(config.model_type, source="huggingface") or str(config.model_type),
        task=head.task,
        inputs=(pixel_values_spec(preprocess),),
        outputs=bake_positions(module, preprocess, where=identity),
    )
    names = class_names_of(config) if head.task in ("classify", "segment") else ()
    metadata = ModelMetadata(spec, preprocess, names, settings.scoring or scoring_of(config))
    return LoadedModel(module, metadata, (*notes, *first_tensor_notes(call)))


def classes_of(source: ModelSource, settings: ModelSettings) -> Classes | None:
    """Return the classes of a classifier without loading its weights; None for another model."""
    folder, identity, _ = _locate(source, settings)
    config = _config(folder, identity)
    if "ForImageClassification" not in str(config.architectures[0]):
        return None
    require_head(config, identity)
    return Classes(int(config.num_labels), class_names_of(config), scoring=settings.scoring or scoring_of(config))


def _locate(source: ModelSource, settings: ModelSettings) -> tuple[Path, str, str | None]:
    """Return (directory, id, hub commit or None)."""
    folder = source.path
    if folder is not None and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelSourceError(
                f"Expected a Hugging Face directory at '{folder}', but it has no config.json.",
                "Save the model and its image processor there with save_pretrained().",
            )
        _refuse_timm(folder)
        return folder, folder.resolve().name, None
    if folder is not None and folder.is_file():
        raise ModelSourceError(
            f"Expected a directory with a config.json, found the file '{folder}': weights alone do not say what model "
            "they are of.",
            f"For a timm model, name its architecture: timm:NAME@{folder}, for example "
            f"timm:vit_base_patch16_224@{folder.name}.",
        )
    if folder is not None or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source.name):
        raise ModelSourceError(
            f"Expected a hub id (owner/name), a directory or timm:NAME, found '{settings.source}', which is neither.",
            "Correct the path, or see `vitexport models` for what can be named.",
        )
    folder, commit = fetch(source.name, settings.revision, allow_pickle=settings.allow_pickle)
    return folder, source.name, commit


def _refuse_timm(folder: Path) -> None:
    """Refuse a directory that timm wrote; its config.json names an architecture and no model type."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # transformers says what is wrong with it
    if isinstance(content, dict) and "architecture" in content and "model_type" not in content:
        raise ModelSourceError(
            f"Expected a directory of transformers at '{folder}', found one of timm ({content['architecture']}).",
            f"Name it as one: timm:local-dir:{folder}",
        )


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


def _model(folder: Path, identity: str, config: Any, settings: ModelSettings) -> tuple[Any, Head, tuple[str, ...]]:
    """Load the weights into the class that does the task; refuse a checkpoint that lacks some of them.

    Returns:
        The model in eval mode, what it gives, and what a person should know of it.
    """
    architecture = str(config.architectures[0])
    _refuse_videos(config, identity)
    saved = head_of(architecture)
    head = chosen_head(saved, settings.task, settings.features, architecture, identity)
    if head.task == "classify":
        require_head(config, identity)
    whole = saved == head or (saved is not None and bool(settings.features))
    own = whole and architecture not in TOWERS
    cls = class_of(architecture) if own else _class_for(head, config, architecture, identity)
    model, missing = _from_pretrained(cls, folder, identity, settings)
    if missing and head is FEATURES and all(_is_pooler(name) for name in missing):
        # A classifier was saved without a pooler; transformers would make up a random one.
        model, missing = _from_pretrained(cls, folder, identity, settings, add_pooling_layer=False)
    if missing:
        _refuse_missing(missing, model, folder, identity, architecture, headless=head is not FEATURES and saved != head)
    notes: tuple[str, ...] = (
        () if whole or head is not FEATURES else (f"Of {architecture}, the encoder alone is exported, as asked.",)
    )
    if show_every_patch(model):
        notes += (f"{type(model).__name__} is shown every patch of the image: nothing is masked.",)
    _refuse_other_inputs(model, identity)
    return model.eval(), head, notes


def _class_for(head: Head, config: Any, architecture: str, identity: str) -> Any:
    """Return the class that does another task than the checkpoint was saved for.

    Raises:
        ModelSourceError: transformers has no such class.
    """
    if head is not FEATURES:
        return transformers.AutoModelForImageClassification
    if architecture in TOWERS:
        return getattr(transformers, TOWERS[architecture])
    if not has_encoder(config.model_type):
        raise ModelSourceError(
            f"Expected an encoder of '{identity}', but transformers has no class for that of a {config.model_type}.",
            "Leave the task out, or name the blocks whose outputs you need: `--features NAME,NAME`.",
        )
    return transformers.AutoModel


def _refuse_missing(
    missing: set[str], model: Any, folder: Path, identity: str, architecture: str, *, headless: bool
) -> NoReturn:
    """Raise the error for weights that a checkpoint lacks.

    Raises:
        ModelSourceError: Always.
    """
    hint = prefix_hint(_weight_names(folder), missing)
    if hint and f"'{model.base_model_prefix}.'" not in hint:  # that one transformers knows how to take off
        raise ModelSourceError(f"The weights of '{identity}' have other names than those of {architecture}.", hint)
    lacking = ", ".join(sorted(missing)[:3])
    if headless:
        raise ModelSourceError(
            f"'{identity}' has no classification head: the weights {lacking} are missing.", "Use `task: features`."
        )
    hint = "Get the complete checkpoint."
    if type(model).__name__ != architecture:
        hint += f" Where {architecture} never has them, leave the task out, or name blocks with `--features`."
    raise ModelSourceError(f"'{identity}' is incomplete: the weights {lacking} are missing.", hint)


def _refuse_videos(config: Any, identity: str) -> None:
    frames = getattr(config, "num_frames", 1) != 1 and "ForImage" not in str(config.architectures[0])
    if getattr(config, "tubelet_size", None) or frames:
        raise ModelSourceError(
            f"Expected '{identity}' to take an image, but a {config.model_type} takes several frames of a video.",
            "Choose a checkpoint that maps images to tensors.",
        )


def _refuse_other_inputs(model: Any, identity: str) -> None:
    """Refuse a model that needs more than pixels."""
    parameters = inspect.signature(model.forward).parameters
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if set(required) - {"pixel_values"} or "pixel_values" not in parameters:
        raise ModelSourceError(
            f"Expected '{identity}' ({type(model).__name__}) to take pixel_values alone, but it takes "
            f"{', '.join(required)}.",
            "Choose a checkpoint with a fixed image resolution that maps images to tensors.",
        )


def _weight_names(folder: Path) -> tuple[str, ...]:
    """Return the names of a directory's weights; nothing for a pickle."""
    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            names.extend(tensors.keys())
    return tuple(names)


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
                ignore_mismatched_sizes=True,  # refused below, where both sizes can be named
                **extra,
            )
    except _LOAD_ERRORS as error:
        raise ModelSourceError(
            f"transformers cannot load '{identity}': {brief(error)}",
            hint_for(error, weight_files(folder, allow_pickle=settings.allow_pickle))
            or "Check that config.json and the weights belong together and are complete.",
        ) from error
    if info["mismatched_keys"]:
        raise misfit(sorted(info["mismatched_keys"]), identity, model.config)
    return model, {str(key) for key in info["missing_keys"]}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bar and the report of unused weights off the terminal; missing ones are checked here."""
    theirs: Any = transformers.utils.logging
    level, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bar:
            theirs.enable_progress_bar()


def _resolution_keywords(model: Any, image_size: tuple[int, int]) -> dict[str, bool]:
    """Ask for interpolated position embeddings where the model does so only on request and the size is another."""
    config = getattr(model.config, "vision_config", model.config)
    own = getattr(config, "image_size", None)
    native = (own, own) if isinstance(own, int) else tuple(own or ())
    return {"interpolate_pos_encoding": True} if native != image_size and _interpolates(model) else {}


def _interpolates(model: Any) -> bool:
    """Return whether a model takes ``interpolate_pos_encoding``, by name or among the keywords that it passes on."""
    parameters = inspect.signature(model.forward).parameters
    if "interpolate_pos_encoding" in parameters:
        return True
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    inner = (inspect.signature(module.forward).parameters for module in model.children())
    return passes_on and any("interpolate_pos_encoding" in taken for taken in inner)


def make_call(model: Any, outputs: tuple[str, ...], image_size: tuple[int, int]) -> Call:
    """Return what runs a Hugging Face model and gives those of some outputs that are there; at least one has to be."""
    return _Call(outputs, _resolution_keywords(model, image_size))


class _Call:
    """Runs a Hugging Face model and names its outputs."""

    def __init__(self, names: tuple[str, ...], keywords: dict[str, bool]) -> None:
        self._names = names
        self._keywords = keywords

    def __call__(self, model: Any, pixel_values: torch.Tensor) -> Named:
        outputs = model(pixel_values=pixel_values, **self._keywords)
        found = {name: outputs[name] for name in self._names if outputs.get(name) is not None}
        if self._names and not found:
            raise ModelSourceError(
                f"Expected {' or '.join(self._names)} from {type(model).__name__}, found {', '.join(outputs)}.",
                "Choose another task, or name the blocks whose outputs you need with `--features`.",
            )
        return found
