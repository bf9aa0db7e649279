"""Hugging Face checkpoints: hub ids and local directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from vitexport.errors import ModelSourceError
from vitexport.host.sources.huggingface_preprocess import resolve_preprocess
from vitexport.host.sources.loaded import LoadedModel
from vitexport.host.sources.weights import content_revision, weight_files
from vitexport.host.sources.wrapping import ImageModel, Named, describe_outputs, pixel_values_spec
from vitexport.model import ModelSpec, Task
from vitexport.recipe import ModelSettings

__all__ = ["load"]


def load(settings: ModelSettings, image_size: tuple[int, int] | None) -> LoadedModel:
    """Load a hub id or a local directory; see :func:`vitexport.host.sources.load_model`."""
    folder = Path(settings.source)
    files = weight_files(folder, allow_pickle=settings.allow_pickle)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    task: Task = settings.task or ("classify" if "ImageClassification" in config.architectures[0] else "features")
    cls = transformers.AutoModelForImageClassification if task == "classify" else transformers.AutoModel
    model = cls.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    preprocess = resolve_preprocess(folder, image_size)
    module = ImageModel(model, _classify if task == "classify" else _features)
    spec = ModelSpec(
        source="huggingface",
        id=folder.resolve().name,
        revision=content_revision(files),
        family=str(config.model_type),
        task=task,
        inputs=(pixel_values_spec(preprocess.image_size),),
        outputs=describe_outputs(module, preprocess.image_size, where=folder.name),
    )
    return LoadedModel(module, spec, preprocess, _labels(config) if task == "classify" else ())


def _classify(model: Any, pixel_values: torch.Tensor) -> Named:
    return {"logits": model(pixel_values=pixel_values).logits}


def _features(model: Any, pixel_values: torch.Tensor) -> Named:
    outputs = model(pixel_values=pixel_values)
    names = ("last_hidden_state", "pooler_output", "image_embeds")
    return {name: outputs[name] for name in names if outputs.get(name) is not None}


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[index]) for index in range(len(config.id2label)))
