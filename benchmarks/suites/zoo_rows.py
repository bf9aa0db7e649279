"""Every vision model worth a row of the zoo, found in the libraries themselves and chosen by rules.

timm: of every module, the model with the fewest parameters among those with an attention layer (a submodule whose class
name holds ``attn`` or ``attention``). transformers: every class of the auto mappings for images whose forward needs
``pixel_values`` alone, built from its default configuration with at most two layers per stage where it runs so.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ZooRow", "build", "huggingface_rows", "image_size", "smallest_with_attention", "source_of", "timm_rows"]

_MAPPINGS = (
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_MAPPING_NAMES",
    "MODEL_FOR_BACKBONE_MAPPING_NAMES",
    "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
)
_LAYERS = 2
_CLASSES = 10

_NEEDED: dict[str, dict[str, Any]] = {
    "BeitForSemanticSegmentation": {"out_indices": [3, 5, 7, 11]},
    "ViTMAEModel": {"mask_ratio": 0.0},
}
"""Settings without which a class cannot be built, or hides most of its image at random."""


@dataclass(frozen=True)
class ZooRow:
    """One row.

    Attributes:
        library: ``timm`` or ``huggingface``.
        group: Module of timm, or model type of transformers.
        model: timm name, or class of transformers.
    """

    library: str
    group: str
    model: str


def timm_rows() -> list[ZooRow]:
    """Return one row per module of timm that has a model with attention; takes minutes, since all are built."""
    import timm

    found = ((module, smallest_with_attention(module)) for module in timm.list_modules())
    return [ZooRow("timm", module, name) for module, name in found if name is not None]


def smallest_with_attention(module: str) -> str | None:
    """Return the timm model of a module with the fewest parameters among those with attention; None without any.

    Of a module whose models all fail to build the first is returned, so that its row says why.
    """
    import timm
    import torch

    sizes: dict[str, int] = {}
    unbuilt: list[str] = []
    names = timm.list_models(module=module)
    for name in names:
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = timm.create_model(name, pretrained=False)
        except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, AttributeError, ImportError):
            unbuilt.append(name)
            continue
        kinds = {type(part).__name__.lower() for part in model.modules()}
        if any("attn" in kind or "attention" in kind for kind in kinds):
            sizes[name] = sum(parameter.numel() for parameter in model.parameters())
    nothing_built = unbuilt[0] if len(unbuilt) == len(names) > 0 else None
    return min(sizes, key=lambda name: (sizes[name], name), default=nothing_built)


def huggingface_rows() -> list[ZooRow]:
    """Return one row per vision class of transformers that takes pixels alone."""
    return sorted(_huggingface(), key=lambda row: (row.group, row.model))


def _huggingface() -> Iterator[ZooRow]:
    import transformers
    from transformers.models.auto import modeling_auto

    seen: set[str] = set()
    for mapping in _MAPPINGS:
        for group, names in getattr(modeling_auto, mapping).items():
            for name in (names,) if isinstance(names, str) else names:
                if name in seen or group.startswith("timm_"):
                    continue  # a wrapper around the other library
                seen.add(name)
                if _takes_pixels_alone(getattr(transformers, name, None)):
                    yield ZooRow("huggingface", str(group), str(name))


def _takes_pixels_alone(cls: Any) -> bool:
    if cls is None:
        return False
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return any(p.name == "pixel_values" for p in parameters) and set(needed) <= {"pixel_values"}


def source_of(row: ZooRow, folder: Path) -> str:
    """Return the model source of a checkpoint that :func:`build` wrote."""
    return f"timm:local-dir:{folder}" if row.library == "timm" else str(folder)


def build(row: ZooRow, folder: Path, *, seed: int = 0, shallow: bool = True) -> Any:
    """Write the checkpoint of a row with every parameter perturbed, and return the model in eval mode.

    Args:
        row: The model.
        folder: Where to.
        seed: Of its parameters.
        shallow: Whether a model of transformers is cut to few layers.
    """
    import torch

    torch.manual_seed(seed)
    model = _timm(row) if row.library == "timm" else _transformers(row, shallow=shallow)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.02 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    if row.library == "timm":
        _save_timm(model, folder)
    else:
        model.save_pretrained(folder)
        _save_processor(model.config, folder)
    return model.eval()


def _save_timm(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file
    from timm.models import save_for_hf

    save_for_hf(model, folder, safe_serialization=False)
    (folder / "pytorch_model.bin").unlink()
    # Written by themselves: safetensors refuses a tensor that a model holds under several names.
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def _timm(row: ZooRow) -> Any:
    import timm

    return timm.create_model(row.model, pretrained=False)


def _transformers(row: ZooRow, *, shallow: bool) -> Any:
    import transformers

    cls = getattr(transformers, row.model)
    depths = _shallow(cls.config_class()) if shallow else {}
    settings = depths | _NEEDED.get(row.model, {})
    config = cls.config_class(**settings)  # not set afterwards: names of stages are made from the depth
    # As a checkpoint gives it: some models cannot be built from the tuples of their own defaults.
    config = cls.config_class.from_dict(json.loads(config.to_json_string(use_diff=False)))
    vision = getattr(config, "vision_config", None)
    for name, value in _shallow(vision).items() if shallow else ():
        setattr(vision, name, value)
    if "ForImageClassification" in row.model or "Segmentation" in row.model:
        config.num_labels = _CLASSES
    return cls(config)


def _shallow(config: Any) -> dict[str, Any]:
    """Return the settings of a configuration that are depths, each cut to at most :data:`_LAYERS`."""
    found: dict[str, Any] = {}
    aliases = getattr(config, "attribute_map", {})
    for name in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
        if name not in aliases and isinstance(getattr(config, name, None), int):
            found[name] = min(_LAYERS, getattr(config, name))
    if isinstance(getattr(config, "depths", None), list | tuple):
        found["depths"] = [min(_LAYERS, depth) for depth in config.depths]
    return found


def image_size(model: Any) -> tuple[int, int]:
    """Return (height, width) in pixels of what a built model takes."""
    if hasattr(model, "pretrained_cfg"):
        _, height, width = model.pretrained_cfg["input_size"]
        return int(height), int(width)
    return _configured_size(model.config)


def _configured_size(config: Any) -> tuple[int, int]:
    parts = (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None))
    size = next((found for part in parts if (found := getattr(part, "image_size", None))), 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return int(height), int(width)


def _save_processor(config: Any, folder: Path) -> None:
    """Write the preprocessing of a plain squash to the size of the configuration."""
    height, width = _configured_size(config)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
