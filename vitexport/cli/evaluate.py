"""``vitexport evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitexport.api import checks as api
from vitexport.cli.label_options import PREPROCESS, SCORING, label_options
from vitexport.cli.screen import OUT, print_json, rich_table
from vitexport.runtimes import available_runtimes

__all__ = ["evaluate"]


@click.command()
@click.argument("target", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Folder of images.")
@label_options
@PREPROCESS
@SCORING
@click.option(
    "--threshold",
    type=float,
    default=0.5,
    show_default=True,
    help="Score from which a label counts as there.",
)
@click.option("--limit", type=click.IntRange(1), help="Use at most so many images, spread over the folder.")
@click.option("--batch", type=click.IntRange(1), default=16, help="Images per run.")
@click.option("--runtime", type=click.Choice(available_runtimes()), help="Runtime; each file's own otherwise.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(target: Path, as_json: bool, **options: Any) -> None:
    """Score a model, or every variant of a bundle, on labelled images, by what its head is scored by.

    Of one class of several, variants are compared image by image (McNemar), so that noise is not taken for a
    difference.

    Example: vitexport evaluate out/quickstart --images calib/holdout --labels calib/manifest.json
    """
    found = api.evaluate(target, **options)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        print_json(found.to_dict())
    else:
        for table in found.tables():
            OUT.print(rich_table(table))
