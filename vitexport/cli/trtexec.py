"""``vitexport trtexec``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitexport.cli.engine_options import engine_options, engine_settings, resolve_model

__all__ = ["trtexec"]


@click.command()
@click.argument("source", metavar="MODEL.onnx|BUNDLE", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Engine trtexec should write.")
@engine_options
def trtexec(source: Path, output: Path | None, variant: str | None, **options: Any) -> None:
    """Print the trtexec command line that builds the same engine, to check ours with the vendor's tool.

    Example: vitexport trtexec out/vit --batch 1,8 -o check.engine
    """
    from vitexport.bundle.metadata import ModelMetadata
    from vitexport.device.profiles import device_profile
    from vitexport.engine.onnx_file import read_metadata
    from vitexport.engine.trtexec import trtexec_command

    model, recipe = resolve_model(source, variant)
    settings = engine_settings(recipe, options)
    metadata = ModelMetadata.from_metadata(read_metadata(model), where=str(model))
    device = None if settings.device is None else device_profile(settings.device)
    click.echo(trtexec_command(model, settings, metadata.model.inputs, engine=output, device=device))
