"""``vitexport diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from vitexport.api import analysis as api
from vitexport.cli.screen import OUT, print_json

if TYPE_CHECKING:
    from vitexport.host.diagnose import Anatomy

__all__ = ["diagnose"]

_COLORS = {"ok": "green", "note": "cyan", "warning": "yellow"}


@click.command()
@click.argument("target", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@click.option("--images", "folder", type=click.Path(path_type=Path), help="Images; a bundle brings its own.")
@click.option("--limit", type=click.IntRange(1), default=16, help="How many images to use.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def diagnose(target: Path, folder: Path | None, limit: int, as_json: bool) -> None:
    """Say what will be hard to quantize or to run in fp16, and what to write into the recipe; needs no GPU.

    Example: vitexport diagnose vit.onnx --images calib/calibration
    """
    found = api.diagnose(target, folder, limit=limit)
    if as_json:
        print_json(found.to_dict())
        return
    OUT.print(_blocks(found.anatomy))
    for entry in found.advice:
        OUT.print(f"[{_COLORS[entry.level]}]{entry.level}[/] [bold]{entry.topic}[/]: {escape(entry.finding)}")
        OUT.print(f"    {escape(entry.why)}")
    if found.recipe:
        OUT.print("\n[bold]For the recipe[/]")
        click.echo(found.recipe, nl=False)


def _blocks(anatomy: Anatomy) -> Table:
    """One row per block: what its residual stream and its inner tensors reach."""
    table = Table(title=f"largest magnitudes by block, {anatomy.images} images", title_justify="left")
    table.add_column("block", no_wrap=True)
    columns = ("residual", "norm", "scores", "activation")
    for heading in columns:
        table.add_column(heading, justify="right")
    table.add_column("norm outliers", justify="right")
    table.add_column("fp16 headroom", justify="right")
    for block in dict.fromkeys(entry.block for entry in anatomy.tensors if entry.block):
        mine = [entry for entry in anatomy.tensors if entry.block == block]
        largest = {role: max((e.largest for e in mine if e.role == role), default=None) for role in columns}
        cells = ["" if largest[role] is None else f"{largest[role]:.1f}" for role in columns]
        outliers = sum(len(entry.outliers) for entry in mine if entry.role == "norm")
        headroom = 65504 / max(entry.largest for entry in mine)
        table.add_row(escape(block), *cells, str(outliers or ""), f"{headroom:,.0f}x")
    return table
