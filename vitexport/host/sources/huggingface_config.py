"""What the config of a transformers checkpoint says of its outputs: their number, their names, and their scores."""

from __future__ import annotations

import logging
from typing import Any

from vitexport.errors import ModelSourceError
from vitexport.inputs.labels.wording import listed
from vitexport.scoring import Scoring, default_scoring

__all__ = ["class_names_of", "misfit", "require_head", "scoring_of"]

_LOG = logging.getLogger(__name__)


def class_names_of(config: Any) -> tuple[str, ...]:
    """Return the class names, or nothing when the config holds only placeholders, or names for other outputs.

    transformers makes a head of ``len(id2label)`` outputs, whatever numbers id2label has. Which output a name is for
    cannot be said when the numbers are others than 0 to ``len(id2label) - 1``.
    """
    named = dict(config.id2label or {})
    missing = [index for index in range(len(named)) if index not in named]
    if missing:
        _LOG.warning(
            "The id2label of the checkpoint numbers its classes %s, and its %d outputs are 0 to %d: the names are not "
            "used. Give them in the order of the outputs with --class-names FILE (model.class_names in a recipe).",
            listed([str(index) for index in sorted(named)]),
            len(named),
            len(named) - 1,
        )
        return ()
    labels = tuple(str(named[index]) for index in range(len(named)))
    return () if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else labels


def scoring_of(config: Any) -> Scoring:
    """Return what ``transformers.pipeline("image-classification")`` turns the logits into scores with."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification":
        return "sigmoid"
    return default_scoring(int(config.num_labels))


def require_head(config: Any, identity: str) -> None:
    """Refuse a classifier of no classes: transformers passes its features through, and they would be read as scores."""
    if not config.num_labels:
        raise ModelSourceError(
            f"Expected class names or num_labels in the config.json of '{identity}', found an empty id2label, which "
            "transformers reads as a classifier without a head.",
            "Name the classes in id2label, or use `task: features`.",
        )


def misfit(mismatched: list[tuple[str, Any, Any]], identity: str, config: Any) -> ModelSourceError:
    """Return what is wrong with weights of other sizes than the config's."""
    name, own, expected = mismatched[0]
    heads = {int(own[0]) for _, own, expected in mismatched if expected[0] == config.num_labels}
    if len(heads) == 1 and all(expected[0] == config.num_labels for _, _, expected in mismatched):
        outputs = heads.pop()
        return ModelSourceError(
            f"Expected id2label in the config.json of '{identity}' to name the {outputs} outputs of its head, found "
            f"{config.num_labels} names.",
            f"Name {outputs} classes there, numbered from 0; transformers takes their number for that of the outputs.",
        )
    return ModelSourceError(
        f"transformers cannot load '{identity}': its config.json says {list(expected)} for {name}, and the weights are "
        f"{list(own)}.",
        "Check that config.json and the weights belong together and are complete.",
    )
