"""What a transformers class gives for inference, read from its name: its task and outputs, or why it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from vitexport.errors import ModelSourceError
from vitexport.recipe.settings import Task

__all__ = ["FEATURES", "TOWERS", "Head", "chosen_head", "class_of", "has_encoder", "head_of", "refuse_head"]


@dataclass(frozen=True)
class Head:
    """What a class puts on its encoder.

    Attributes:
        task: What it is for.
        outputs: Fields of its result that are kept where they are there.
    """

    task: Task
    outputs: tuple[str, ...]


FEATURES = Head("features", ("last_hidden_state", "pooler_output", "image_embeds"))
"""A class without a head."""

_QUERIES = Head("segment", ("class_queries_logits", "masks_queries_logits"))
_HEADS = {
    "ForImageClassification": Head("classify", ("logits",)),
    "ForSemanticSegmentation": Head("segment", ("logits",)),
    "ForUniversalSegmentation": _QUERIES,
    "MaskFormerForInstanceSegmentation": _QUERIES,
    "ForDepthEstimation": Head("depth", ("predicted_depth", "field_of_view")),
}

TOWERS = {
    "CLIPModel": "CLIPVisionModelWithProjection",
    "CLIPVisionModel": "CLIPVisionModel",
    "CLIPVisionModelWithProjection": "CLIPVisionModelWithProjection",
    "SiglipModel": "SiglipVisionModel",
    "SiglipVisionModel": "SiglipVisionModel",
}
"""Two-tower checkpoints: the class of the tower that sees images."""

_MASKING = ("ForPreTraining", "ForMaskedImageModeling")


def head_of(architecture: str) -> Head | None:
    """Return what a class gives, or None where that is nothing this package knows to export.

    Args:
        architecture: Name of a transformers class, as a checkpoint's config has it.
    """
    if architecture in TOWERS or architecture in _encoders() or architecture.endswith("VisionModel"):
        return FEATURES
    return next((head for part, head in _HEADS.items() if part in architecture), None)


def chosen_head(
    saved: Head | None, task: Task | None, features: tuple[str, ...], architecture: str, identity: str
) -> Head:
    """Return what is exported of a checkpoint.

    Args:
        saved: What its class gives; None for another task.
        task: What was asked for; None takes what it was saved for.
        features: Blocks whose outputs were asked for.
        architecture: Name of its class.
        identity: What the error message calls the model.

    Raises:
        ModelSourceError: The class is of another task, or has no maps to segment or measure depth with.
    """
    if features and task not in (None, "features"):
        raise ModelSourceError(
            f"Expected the outputs of blocks with the task features, found the task {task}.",
            "Leave out one of the two: the task, or the blocks.",
        )
    if task == "features" or features:
        return FEATURES
    if task == "classify" and (saved is None or saved.task != "classify"):
        return _HEADS["ForImageClassification"]
    if saved is None:
        refuse_head(architecture, identity)
    if task not in (None, saved.task):
        raise ModelSourceError(
            f"Expected '{identity}' to have a head for the task {task}, but {architecture} is for {saved.task}.",
            f"Use `task: {saved.task}`, or leave the task out.",
        )
    return saved


def refuse_head(architecture: str, identity: str) -> NoReturn:
    """Raise the error for a class whose outputs are of no task; its head is never dropped without a word.

    Raises:
        ModelSourceError: Always.
    """
    if architecture.endswith(_MASKING):
        raise ModelSourceError(
            f"Expected '{identity}' to answer the same for the same image, but {architecture} is for pretraining: it "
            "hides parts of the image.",
            "Use its encoder, which is then shown the whole image: `--task features` (in a recipe, `task: features`).",
        )
    known = ", ".join(dict.fromkeys(part.removeprefix("MaskFormer") for part in _HEADS))
    raise ModelSourceError(
        f"Expected '{identity}' to be an encoder or one of ...{known}, found {architecture}, whose outputs are those "
        "of another task.",
        "Export its encoder without that head with `--task features` (in a recipe, `task: features`).",
    )


def class_of(architecture: str) -> Any:
    """Return the class of that name.

    Raises:
        ModelSourceError: transformers has none.
    """
    cls = getattr(transformers, architecture, None)
    if cls is None:
        raise ModelSourceError(
            f"Expected a class of transformers {transformers.__version__} in 'architectures', found '{architecture}'.",
            "Code from a checkpoint is never run; update transformers, or convert the checkpoint.",
        )
    return cls


def has_encoder(model_type: str) -> bool:
    """Return whether transformers has a class for the encoder of a model type alone."""
    return model_type in MODEL_MAPPING_NAMES


def _encoders() -> frozenset[str]:
    """Return the names of the classes without a head."""
    names: list[str] = []
    entries: Any = MODEL_MAPPING_NAMES.values()
    for entry in entries:
        names.extend((entry,) if isinstance(entry, str) else entry)
    return frozenset(names)
