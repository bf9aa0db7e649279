"""Options that say what labels, class names and files of other tools mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from vitexport.recipe.settings import Scoring

__all__ = ["CLASS_NAMES", "PREPROCESS", "SCORING", "label_options"]

CLASS_NAMES = click.option(
    "--class-names",
    type=click.Path(path_type=Path),
    help="Class names in the order of the outputs (.txt, .json, .csv), or the folder of the training images.",
)

PREPROCESS = click.option(
    "--preprocess",
    type=click.Path(path_type=Path, dir_okay=False),
    help="How images are prepared for a file of another tool: JSON or YAML, or a preprocessor_config.json.",
)

SCORING = click.option(
    "--scoring", type=click.Choice(get_args(Scoring)), help="What makes scores.  [default: the model's own]"
)


def label_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--labels``, ``--file-column``, ``--label-column`` and ``--class-names``."""
    options = (
        click.option(
            "--labels",
            type=click.Path(path_type=Path),
            help="Label of each image (.csv, .tsv, .json, .jsonl); class folders and the like otherwise.",
        ),
        click.option("--file-column", help="Column of the file names in a table of labels."),
        click.option("--label-column", help="Column of the labels."),
        CLASS_NAMES,
    )
    for option in reversed(options):
        command = option(command)
    return command
