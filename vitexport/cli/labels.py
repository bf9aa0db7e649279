"""``vitexport labels``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitexport.api import labels as api
from vitexport.cli.label_options import SCORING, label_options
from vitexport.cli.screen import OUT, print_json, rich_table

__all__ = ["labels"]


@click.command()
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="MODEL|BUNDLE|SOURCE", help="Whose classes the labels are matched to.")
@label_options
@SCORING
@click.option("--revision", help="Hub branch, tag or commit of a SOURCE.")
@click.option("--allow-pickle", is_flag=True, help="Accept a pickle checkpoint (loaded with weights_only).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def labels(images: Path, as_json: bool, **options: Any) -> None:
    """Show which class of a model each label of a folder of images is taken for, before anything runs.

    Labels match by class name (exact, apart from case and separators, or by one of ImageNet's synonyms), by synset, or
    by index.

    Example: vitexport labels calib/holdout --model out/quickstart
    """
    found = api.labels(images, **options)
    if as_json:
        print_json(found.to_dict())
        return
    for table in found.tables():
        OUT.print(rich_table(table))
