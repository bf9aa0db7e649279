"""``vitexport refit``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from vitexport.api import engine as api
from vitexport.cli.screen import OUT

__all__ = ["refit"]


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("model", metavar="MODEL.onnx", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Engine to write.")
def refit(engine: Path, model: Path, output: Path) -> None:
    """Put the weights of an ONNX file into an engine built with --strip-weights or --refit; needs its GPU.

    Example: vitexport refit stripped.engine int8.onnx -o vit.engine
    """
    sidecar = api.refit(engine, model, output)
    OUT.print(
        f"wrote {escape(str(output))} ({sidecar.engine_bytes / 2**20:.1f} MiB, {sidecar.product} {sidecar.version})",
        soft_wrap=True,
        highlight=False,
    )
