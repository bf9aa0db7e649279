"""timm models: registry names (weights from the hub), local directories and single checkpoint files."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.errors import ModelSourceError
from vitexport.host.sources.blocks import BlockOutputs, first_tensor_notes
from vitexport.host.sources.channels import timm_channels
from vitexport.host.sources.families import family_of
from vitexport.host.sources.hub import fetch
from vitexport.host.sources.loaded import LoadedModel
from vitexport.host.sources.timm_preprocess import resolve_preprocess
from vitexport.host.sources.unreadable import LOAD_ERRORS, brief, hint_for, prefix_hint
from vitexport.host.sources.weights import content_revision, is_pickle, refuse_pickle, weight_files
from vitexport.host.sources.wrapping import Call, ImageModel, Named, describe_outputs, pixel_values_spec
from vitexport.recipe.settings import ModelSettings, Task
from vitexport.scoring import default_scoring
from vitexport.source import ModelSource

__all__ = ["chosen_task", "class_names_of", "load", "make_call"]

_FEWEST_OF_SPACE_TO_DEPTH = 12  # 3 channels of 2 x 2 pixels

_LOAD_ERRORS = (*LOAD_ERRORS, SafetensorError)


def load(source: ModelSource, settings: ModelSettings, image_size: tuple[int, int] | None) -> LoadedModel:
    """Load ``timm:NAME``, ``timm:local-dir:PATH`` or ``timm:NAME@WEIGHTS``.

    See :func:`vitexport.host.sources.load_model`.
    """
    model, identity, revision = _create(source, settings, image_size)
    task = chosen_task(model, identity, "features" if settings.features else settings.task)
    if settings.features and settings.task not in (None, "features"):
        raise ModelSourceError(
            f"Expected the outputs of blocks with the task features, found the task {settings.task}.",
            "Leave out one of the two: the task, or the blocks.",
        )
    preprocess = resolve_preprocess(model.pretrained_cfg, image_size, timm_channels(model))
    call = make_call(task, settings.features)
    if settings.features:
        call = BlockOutputs(model, settings.features, call, where=identity)
    module = ImageModel(model, call)
    architecture = str(model.pretrained_cfg.get("architecture") or identity)
    spec = ModelSpec(
        source="timm",
        id=identity,
        revision=revision,
        family=family_of(architecture, source="timm") or architecture.split("_")[0],
        task=task,
        inputs=(pixel_values_spec(preprocess),),
        outputs=describe_outputs(module, preprocess, where=identity),
    )
    names = class_names_of(model) if task == "classify" else ()
    scoring = settings.scoring or default_scoring(model.num_classes)
    return LoadedModel(module, ModelMetadata(spec, preprocess, names, scoring), first_tensor_notes(call))


def _create(source: ModelSource, settings: ModelSettings, image_size: tuple[int, int] | None) -> tuple[Any, str, str]:
    """Return (model in eval mode, id, revision)."""
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    architecture, folder = source.name, source.path
    if not architecture:
        assert folder is not None  # the grammar has no third form
        if not (folder / "config.json").is_file():
            raise ModelSourceError(
                f"Expected a timm directory (config.json and model.safetensors) at '{folder}', found none.",
                "Correct the path; timm writes such a directory when a model is saved for the hub.",
            )
        files = weight_files(folder, allow_pickle=settings.allow_pickle)
        identity = folder.resolve().name
        return _from_folder(folder, identity, files, size), identity, content_revision(files)
    if not timm.is_model(architecture.partition(".")[0]):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise ModelSourceError(
            f"timm {timm.__version__} has no model '{architecture}'.",
            f"Did you mean {', '.join(close)}?" if close else "`timm.list_models()` lists what there is.",
        )
    if source.path is not None:
        return _from_file(architecture, source.path, settings, size)
    folder, commit = fetch(_repository(architecture), settings.revision, allow_pickle=settings.allow_pickle)
    files = weight_files(folder, allow_pickle=settings.allow_pickle)
    return _from_folder(folder, architecture, files, size), architecture, commit


def _from_folder(folder: Path, identity: str, files: Sequence[Path], size: dict[str, Any]) -> Any:
    try:
        with _quiet():
            return timm.create_model(f"local-dir:{folder}", pretrained=True, **size).eval()
    except _LOAD_ERRORS as error:
        raise ModelSourceError(
            f"timm cannot load '{identity}': {brief(error)}",
            hint_for(error, files)
            or "Check that config.json and the weights belong together; an image size must fit the architecture.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's remarks on how timm resamples position embeddings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|timm)\b.*")
        yield


def _from_file(architecture: str, path: Path, settings: ModelSettings, size: dict[str, Any]) -> tuple[Any, str, str]:
    if not path.is_file():
        raise ModelSourceError(f"Expected a checkpoint at '{path}', found none.", "Correct the path after the '@'.")
    if is_pickle(path) and not settings.allow_pickle:
        refuse_pickle(path)
    shapes: Mapping[str, tuple[int, ...]] = {}
    wanted: Mapping[str, Any] = {}
    try:
        shapes = _shapes(path)
        sizes = {**_head(architecture, shapes), **_stem(architecture, shapes), **size}
        model = timm.create_model(architecture, pretrained=False, **sizes)
        wanted = model.state_dict()
        filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        with _quiet():
            timm.models.load_checkpoint(model, str(path), strict=True, weights_only=True, filter_fn=filter_fn)
    except _LOAD_ERRORS as error:
        hint = hint_for(error, [path]) or prefix_hint(shapes, wanted)
        raise ModelSourceError(
            f"timm cannot load '{path.name}' as '{architecture}': {brief(error)}",
            hint or "Name the architecture it was trained with.",
        ) from error
    return model.eval(), architecture, content_revision([path])


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight in a file."""
    if not is_pickle(path):
        with safe_open(path, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    weights = timm.models.load_state_dict(str(path), weights_only=True)
    return {name: tuple(value.shape) for name, value in weights.items() if isinstance(value, torch.Tensor)}


def _head(architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the number of classes that the checkpoint's classifier has."""
    name = timm.models.get_pretrained_cfg_value(architecture, "classifier")
    if isinstance(name, tuple | list):
        name = next(iter(name), None)  # a distilled model has two classifiers of one width
    if not isinstance(name, str):
        return {}
    return {"num_classes": shapes.get(f"{name}.weight", (0,))[0]}


def _stem(architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the number of channels that the checkpoint's first convolution takes."""
    name = timm.models.get_pretrained_cfg_value(architecture, "first_conv")
    shape = shapes.get(f"{name}.weight", ())
    # A stem that turns space into depth takes a multiple of them, and says nothing here.
    return {"in_chans": shape[1]} if len(shape) == 4 and shape[1] < _FEWEST_OF_SPACE_TO_DEPTH else {}


def _repository(architecture: str) -> str:
    """Return the hub repository of a registry name's weights."""
    try:
        config = timm.models.get_pretrained_cfg(architecture)
    except RuntimeError as error:
        tags = sorted(timm.models.get_arch_pretrained_cfgs(architecture.partition(".")[0]))
        raise ModelSourceError(f"timm has no weights '{architecture}'.", f"It has {', '.join(tags)}.") from error
    if config is None or not config.hf_hub_id:
        raise ModelSourceError(
            f"timm publishes no weights for '{architecture}'.",
            f"Give a checkpoint: timm:{architecture}@PATH, or a directory: timm:local-dir:PATH.",
        )
    hub_id = str(config.hf_hub_id)
    tag = f".{config.tag}" if config.tag else ""
    return f"{hub_id}{config.architecture}{tag}" if hub_id.endswith("/") else hub_id


def chosen_task(model: Any, identity: str, task: Task | None) -> Task:
    """Return what a timm model does: what was asked for, else what it has a head for.

    Raises:
        ModelSourceError: It has no such head.
    """
    if task in ("segment", "depth"):
        raise ModelSourceError(
            f"Expected '{identity}' to have a head for the task {task}, but timm has classifiers and encoders only.",
            "Use `task: features`, or wrap the encoder and your own head in a module and export that from Python.",
        )
    if task == "classify" and model.num_classes <= 0:
        raise ModelSourceError(
            f"'{identity}' has no classification head.", "Use `task: features`, or a fine-tuned checkpoint."
        )
    return task or ("classify" if model.num_classes > 0 else "features")


def make_call(task: Task, features: Sequence[str] = ()) -> Call:
    """Return what runs a timm model for a task and names its outputs; the whole model where blocks are asked for."""
    return _classify if task == "classify" or features else _features


def _classify(model: Any, pixel_values: torch.Tensor) -> Named:
    return {"logits": model(pixel_values)}


def _features(model: Any, pixel_values: torch.Tensor) -> Named:
    hidden = model.forward_features(pixel_values)
    return {"last_hidden_state": hidden, "pooler_output": model.forward_head(hidden, pre_logits=True)}


def class_names_of(model: Any) -> tuple[str, ...]:
    """Return the class names in the checkpoint, or timm's own for the ImageNet subset it names."""
    names = model.pretrained_cfg.get("label_names")
    if names:
        return tuple(str(name) for name in names)
    tag = str(model.pretrained_cfg.get("tag") or "")
    subset = infer_imagenet_subset(model) if re.search(r"in(1|12|21|22)k", tag) else None
    if subset is None:
        return ()  # a thousand classes alone do not say which
    info: Any = ImageNetInfo(subset)
    return tuple(str(info.index_to_description(index)) for index in range(info.num_classes()))
