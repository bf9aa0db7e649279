"""A model that is already in memory: its own PyTorch code, on a copy, so that the caller's module stays as it is."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.errors import ModelSourceError
from vitexport.host.sources.blocks import BlockOutputs, first_tensor_notes
from vitexport.host.sources.channels import huggingface_channels, require_channels, timm_channels
from vitexport.host.sources.families import family_of
from vitexport.host.sources.huggingface_config import class_names_of, scoring_of
from vitexport.host.sources.imagenet import synsets_of
from vitexport.host.sources.loaded import LoadedModel
from vitexport.host.sources.wrapping import Call, ImageModel, Named, describe_outputs, pixel_values_spec
from vitexport.inputs.preprocess import PreprocessSpec
from vitexport.recipe.settings import Task
from vitexport.scoring import Scoring, default_scoring, require_scoring
from vitexport.tensors import TensorSpec

__all__ = ["wrap_module"]


def wrap_module(
    module: torch.nn.Module,
    preprocess: PreprocessSpec | Mapping[str, Any] | object | None = None,
    class_names: Sequence[str] = (),
    *,
    task: Task | None = None,
    scoring: Scoring | None = None,
    features: Sequence[str] = (),
    image_size: tuple[int, int] | None = None,
) -> LoadedModel:
    """Make a live module exportable.

    Args:
        module: A transformers or timm model, or any module whose ``forward(float32 [N, C, H, W])`` returns a tensor, or
            a mapping of tensors, with one row per image. It is copied to the CPU in float32 and not changed.
        preprocess: What turns an image into its input: a :class:`~vitexport.inputs.preprocess.PreprocessSpec`, the same
            as a mapping, or a transformers image processor. None takes what a timm model carries.
        class_names: Names by output index; empty takes those of the model's own config.
        task: ``classify``, ``segment``, ``depth`` or ``features``; None takes what the model's class or outputs say.
        scoring: ``softmax``, ``sigmoid`` or ``none``; None takes what a transformers config says, else ``sigmoid`` for
            a single output and ``softmax`` for several.
        features: Dotted paths of modules whose outputs become those of the graph, e.g. ``blocks.5``; empty for its own.
        image_size: (height, width) in pixels for a timm model or a processor of another size; None takes their own.

    Raises:
        ModelSourceError: The preprocessing is not known, or the model does not map images to tensors.
    """
    if not isinstance(module, torch.nn.Module):
        raise ModelSourceError(
            f"Expected a module, a path or a hub id, found {module!r} ({type(module).__name__}).",
            "Pass a torch.nn.Module, or name a checkpoint as text.",
        )
    if isinstance(class_names, str):
        raise ModelSourceError(f"Expected a sequence of class names, found the text '{class_names}'.", "Pass a list.")
    name = type(module).__name__
    spec = _preprocess(module, preprocess, image_size)
    require_channels(_channels(module), spec, where=name)
    inner = copy.deepcopy(module).to("cpu", torch.float32).eval()
    chosen, inner, call, own_names, family = _describe(inner, task, tuple(features), spec)
    if features:
        call = BlockOutputs(inner, tuple(features), call, where=name)
    wrapped = ImageModel(inner, call)
    if own_names is not None and class_names == ():
        class_names = own_names
    with torch.no_grad():
        outputs = _outputs(wrapped, inner, spec, name)
    chosen = chosen or ("classify" if [len(output.shape) for output in outputs] == [2] else "features")
    model = ModelSpec(
        source="module",
        id=name,
        revision=_revision(inner),
        family=family,
        task=chosen,
        inputs=(pixel_values_spec(spec),),
        outputs=outputs,
    )
    names = tuple(str(entry) for entry in class_names) if chosen in ("classify", "segment") else ()
    classes = _class_count(chosen, outputs)
    if names and classes is not None and len(names) != classes:
        raise ModelSourceError(
            f"Expected {classes} class names for '{name}', found {len(names)}.", "Give one name per output, in order."
        )
    require_scoring(scoring, model.task, outputs[0].shape[-1], name)
    scoring = scoring or _scoring(inner, outputs[0].shape[-1])
    metadata = ModelMetadata(model, spec, names, scoring, synsets=synsets_of(names))
    return LoadedModel(wrapped, metadata, first_tensor_notes(call))


def _preprocess(module: torch.nn.Module, given: object, image_size: tuple[int, int] | None) -> PreprocessSpec:
    if isinstance(given, PreprocessSpec):
        return given
    if isinstance(given, Mapping):
        try:
            return PreprocessSpec.model_validate(given)
        except ValidationError as error:
            raise ModelSourceError(
                f"The preprocessing is not complete: {error}", "See docs/models.md for its settings."
            ) from error
    if given is not None and hasattr(given, "save_pretrained"):
        from vitexport.host.sources.huggingface_preprocess import resolve_preprocess as from_processor

        with tempfile.TemporaryDirectory(prefix="vitexport-") as folder:
            given.save_pretrained(folder)
            return from_processor(Path(folder), image_size, _channels(module))
    config: Any = getattr(module, "pretrained_cfg", None)
    if given is None and _is_timm(module):
        from vitexport.host.sources.timm_preprocess import resolve_preprocess as from_timm

        return from_timm(config, image_size, _channels(module))
    raise ModelSourceError(
        f"Expected the preprocessing of '{type(module).__name__}', found {type(given).__name__}.",
        "Pass preprocess=PreprocessSpec(...), a transformers image processor, or a timm model that carries its own.",
    )


def _class_count(task: Task, outputs: tuple[TensorSpec, ...]) -> int | str | None:
    """Return how many classes the outputs are about: of vectors, or of maps; None where they do not say."""
    shape = outputs[0].shape
    if task == "classify":
        return shape[-1]
    return shape[1] if outputs[0].name == "logits" and len(shape) == 4 else None


def _channels(module: Any) -> int | None:
    """Return how many channels a model takes, where its library says so."""
    if _is_transformers(module):
        return huggingface_channels(module.config)
    return timm_channels(module) if _is_timm(module) else None


def _describe(
    inner: Any, task: Task | None, features: tuple[str, ...], spec: PreprocessSpec
) -> tuple[Task | None, Any, Call, tuple[str, ...] | None, str]:
    """Return (task, the module that does it, how to call it, its own class names, family)."""
    if _is_transformers(inner):
        return _describe_transformers(inner, task, features, spec)
    asked: Task | None = "features" if features else task
    if _is_timm(inner):
        from vitexport.host.sources import timm

        chosen = timm.chosen_task(inner, type(inner).__name__, asked)
        architecture = str(inner.pretrained_cfg.get("architecture") or type(inner).__name__.lower())
        call = timm.make_call(chosen, features)
        return chosen, inner, call, timm.class_names_of(inner), _family(architecture, "timm")
    return asked, inner, partial(_call_any, asked), None, type(inner).__name__.lower()


def _describe_transformers(
    inner: Any, task: Task | None, features: tuple[str, ...], spec: PreprocessSpec
) -> tuple[Task, Any, Call, tuple[str, ...], str]:
    """Return what :func:`_describe` does, for a transformers model; its encoder where features are asked for."""
    from vitexport.host.sources import huggingface
    from vitexport.host.sources.heads import FEATURES, chosen_head, head_of
    from vitexport.host.sources.unmasked import show_every_patch

    architecture = type(inner).__name__
    saved = head_of(architecture)
    head = chosen_head(saved, task, features, architecture, architecture)
    named_inside_its_head = bool(features) and saved is not None
    if head is FEATURES and saved != FEATURES and not named_inside_its_head:
        inner = inner.base_model
    show_every_patch(inner)
    call = huggingface.make_call(inner, () if features else head.outputs, spec.image_size)
    names, family = class_names_of(inner.config), _family(inner.config.model_type, "huggingface")
    return head.task, inner, call, names, family


def _scoring(inner: Any, classes: int | str) -> Scoring:
    if _is_transformers(inner):
        return scoring_of(inner.config)
    return default_scoring(int(classes))


def _family(name: str, library: str) -> str:
    return family_of(str(name), source=library) or str(name).split("_")[0]


def _outputs(wrapped: ImageModel, inner: Any, spec: PreprocessSpec, name: str) -> Any:
    if _is_transformers(inner):
        from vitexport.host.sources.baked import bake_positions

        return bake_positions(wrapped, spec, where=name)
    return describe_outputs(wrapped, spec, where=name)


def _call_any(task: Task | None, model: Any, pixel_values: torch.Tensor) -> Named:
    found = model(pixel_values)
    if isinstance(found, torch.Tensor):
        inner = {"segment": "logits", "depth": "predicted_depth"}.get(task or "", "last_hidden_state")
        return {"logits" if found.ndim == 2 else inner: found}
    if isinstance(found, Mapping):
        return {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
    raise ModelSourceError(
        f"Expected '{type(model).__name__}' to return a tensor or a mapping of tensors, found {type(found).__name__}.",
        "Wrap it in a module whose forward returns one of these.",
    )


def _is_transformers(module: object) -> bool:
    return hasattr(module, "config") and any(cls.__name__ == "PreTrainedModel" for cls in type(module).__mro__)


def _is_timm(module: Any) -> bool:
    return isinstance(getattr(module, "pretrained_cfg", None), Mapping) and hasattr(module, "forward_features")


def _revision(module: torch.nn.Module) -> str:
    """Return a hash over all weights, so that two states of one module are told apart."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
