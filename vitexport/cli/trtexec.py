"""``vitexport trtexec``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitexport.api import engine as api
from vitexport.cli.engine_options import engine_options, given_settings
from vitexport.cli.screen import say_choice

__all__ = ["trtexec"]


@click.command()
@click.argument("source", metavar="MODEL.onnx|BUNDLE", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Engine trtexec should write.")
@engine_options
def trtexec(source: Path, output: Path | None, variant: str | None, **options: Any) -> None:
    """Print the trtexec command line that builds the same engine, to check ours with the vendor's tool.

    Example: vitexport trtexec out/vit --batch 1,8 -o check.engine
    """
    click.echo(api.trtexec(source, output, variant=variant, on_choice=say_choice, **given_settings(options)))
