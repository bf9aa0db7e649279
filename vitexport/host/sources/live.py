"""A model that is already in memory: its own PyTorch code, on a copy, so that the caller's module stays as it is."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.errors import ModelSourceError
from vitexport.host.sources.families import family_of
from vitexport.host.sources.imagenet import synsets_of
from vitexport.host.sources.loaded import LoadedModel
from vitexport.host.sources.wrapping import ImageModel, Named, describe_outputs, pixel_values_spec
from vitexport.inputs.preprocess import PreprocessSpec
from vitexport.recipe.settings import Task
from vitexport.scoring import Scoring, default_scoring

__all__ = ["wrap_module"]


def wrap_module(
    module: torch.nn.Module,
    preprocess: PreprocessSpec | Mapping[str, Any] | object | None = None,
    class_names: Sequence[str] = (),
    *,
    task: Task | None = None,
    scoring: Scoring | None = None,
    image_size: tuple[int, int] | None = None,
) -> LoadedModel:
    """Make a live module exportable.

    Args:
        module: A transformers or timm model, or any module whose ``forward(float32 [N, 3, H, W])`` returns a tensor, or
            a mapping of tensors, with one row per image. It is copied to the CPU in float32 and not changed.
        preprocess: What turns an image into its input: a :class:`~vitexport.inputs.preprocess.PreprocessSpec`, the same
            as a mapping, or a transformers image processor. None takes what a timm model carries.
        class_names: Names by output index; empty takes those of the model's own config.
        task: ``classify`` or ``features``; None takes what the model's outputs look like.
        scoring: ``softmax``, ``sigmoid`` or ``none``; None takes what a transformers config says, else ``sigmoid`` for
            a single output and ``softmax`` for several.
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
    inner = copy.deepcopy(module).to("cpu", torch.float32).eval()
    chosen, call, own_names, family = _describe(inner, task, spec)
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
        inputs=(pixel_values_spec(spec.image_size),),
        outputs=outputs,
    )
    names = tuple(str(entry) for entry in class_names) if chosen == "classify" else ()
    classes = outputs[0].shape[-1]
    if names and len(names) != classes:
        raise ModelSourceError(
            f"Expected {classes} class names for '{name}', found {len(names)}.", "Give one name per output, in order."
        )
    scoring = scoring or _scoring(inner, outputs[0].shape[-1])
    return LoadedModel(wrapped, ModelMetadata(model, spec, names, scoring, synsets=synsets_of(names)))


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
            return from_processor(Path(folder), image_size)
    config: Any = getattr(module, "pretrained_cfg", None)
    if given is None and _is_timm(module):
        from vitexport.host.sources.timm_preprocess import resolve_preprocess as from_timm

        return from_timm(config, image_size)
    raise ModelSourceError(
        f"Expected the preprocessing of '{type(module).__name__}', found {type(given).__name__}.",
        "Pass preprocess=PreprocessSpec(...), a transformers image processor, or a timm model that carries its own.",
    )


def _describe(
    inner: Any, task: Task | None, spec: PreprocessSpec
) -> tuple[Task | None, Any, tuple[str, ...] | None, str]:
    """Return (task, how to call it, its own class names, family)."""
    if _is_transformers(inner):
        from vitexport.host.sources import huggingface

        chosen: Task = task or ("classify" if "ForImageClassification" in type(inner).__name__ else "features")
        call = huggingface.make_call(inner, chosen, spec.image_size)
        return chosen, call, huggingface.class_names_of(inner.config), _family(inner.config.model_type, "huggingface")
    if _is_timm(inner):
        from vitexport.host.sources import timm

        chosen = task or ("classify" if inner.num_classes > 0 else "features")
        architecture = str(inner.pretrained_cfg.get("architecture") or type(inner).__name__.lower())
        return chosen, timm.make_call(chosen), timm.class_names_of(inner), _family(architecture, "timm")
    return task, _call_any, None, type(inner).__name__.lower()


def _scoring(inner: Any, classes: int | str) -> Scoring:
    if _is_transformers(inner):
        from vitexport.host.sources import huggingface

        return huggingface.scoring_of(inner.config)
    return default_scoring(int(classes))


def _family(name: str, library: str) -> str:
    return family_of(str(name), source=library) or str(name).split("_")[0]


def _outputs(wrapped: ImageModel, inner: Any, spec: PreprocessSpec, name: str) -> Any:
    if _is_transformers(inner):
        from vitexport.host.sources.baked import bake_positions

        return bake_positions(wrapped, spec.image_size, where=name)
    return describe_outputs(wrapped, spec.image_size, where=name)


def _call_any(model: Any, pixel_values: torch.Tensor) -> Named:
    found = model(pixel_values)
    if isinstance(found, torch.Tensor):
        return {"logits" if found.ndim == 2 else "last_hidden_state": found}
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
