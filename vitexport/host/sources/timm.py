"""timm models: registry names (with a hub download), local directories and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from vitexport.errors import ModelSourceError
from vitexport.host.sources.loaded import LoadedModel
from vitexport.host.sources.timm_preprocess import resolve_preprocess
from vitexport.host.sources.weights import content_revision, weight_files
from vitexport.host.sources.wrapping import ImageModel, Named, describe_outputs, pixel_values_spec
from vitexport.model import ModelSpec, Task
from vitexport.recipe import ModelSettings

__all__ = ["load"]


def load(settings: ModelSettings, image_size: tuple[int, int] | None) -> LoadedModel:
    """Load ``timm:NAME`` or ``timm:local-dir:PATH``; see :func:`vitexport.host.sources.load_model`."""
    name = settings.source.removeprefix("timm:")
    model, identity, revision = _create(name, settings, image_size)
    task = settings.task or "classify"
    if task == "classify" and model.num_classes == 0:
        if settings.task is not None:
            raise ModelSourceError(
                f"'{identity}' has no classification head.", "Use `task: features`, or a fine-tuned checkpoint."
            )
        task = "features"
    preprocess = resolve_preprocess(model.pretrained_cfg, image_size)
    module = ImageModel(model, _classify if task == "classify" else _features)
    spec = ModelSpec(
        source="timm",
        id=identity,
        revision=revision,
        family=_family(model),
        task=task,
        inputs=(pixel_values_spec(preprocess.image_size),),
        outputs=describe_outputs(module, preprocess.image_size, where=identity),
    )
    return LoadedModel(module, spec, preprocess, _labels(model) if task == "classify" else ())


def _create(
    name: str, settings: ModelSettings, image_size: tuple[int, int] | None
) -> tuple[Any, str, str]:
    kwargs: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    folder: Path | None = None
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "config.json").is_file():
            raise ModelSourceError(
                f"Expected a timm directory (config.json and model.safetensors) at '{folder}', found none.",
                "Make one with timm.models.save_for_hf(model, PATH), or correct the path.",
            )
        files = weight_files(folder, allow_pickle=settings.allow_pickle)
        identity, revision = folder.resolve().name, content_revision(files)
    try:
        model = timm.create_model(name, pretrained=True, **kwargs)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError, AssertionError) as error:
        raise ModelSourceError(f"timm cannot load '{name}': {error}", "Check the name.") from error
    model.eval()
    if folder is None:
        identity, revision = name, settings.revision or "unknown"
    return model, identity, revision


def _classify(model: Any, pixel_values: torch.Tensor) -> Named:
    return {"logits": model(pixel_values)}


def _features(model: Any, pixel_values: torch.Tensor) -> Named:
    hidden = model.forward_features(pixel_values)
    return {"last_hidden_state": hidden, "pooler_output": model.forward_head(hidden, pre_logits=True)}


def _family(model: Any) -> str:
    return str(model.pretrained_cfg.get("architecture", type(model).__name__)).split("_")[0]


def _labels(model: Any) -> tuple[str, ...]:
    names = model.pretrained_cfg.get("label_names")
    return tuple(names) if names else ()
