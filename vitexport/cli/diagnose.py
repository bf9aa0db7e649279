"""``vitexport diagnose``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from vitexport.bundle.layout import read_replay_inputs
from vitexport.bundle.target import resolve_target
from vitexport.cli.screen import OUT, print_json
from vitexport.errors import ImageError
from vitexport.files import finite
from vitexport.inputs.images import batches, list_images
from vitexport.runtimes import open_runtime
from vitexport.tensors import Array

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
    from vitexport.host.diagnose import advise, measure_anatomy, recipe_of

    model, feeds = _inputs(target, folder, limit)
    anatomy = measure_anatomy(model, feeds)
    advice = advise(anatomy)
    recipe = recipe_of(advice)
    if as_json:
        content = {"advice": [asdict(entry) for entry in advice], "recipe": recipe, **asdict(anatomy)}
        print_json(finite(content))
        return
    OUT.print(_blocks(anatomy))
    for entry in advice:
        OUT.print(f"[{_COLORS[entry.level]}]{entry.level}[/] [bold]{entry.topic}[/]: {escape(entry.finding)}")
        OUT.print(f"    {escape(entry.why)}")
    if recipe:
        OUT.print("\n[bold]For the recipe[/]")
        click.echo(recipe, nl=False)


def _inputs(target: Path, folder: Path | None, limit: int) -> tuple[Path, list[Array]]:
    """Return the float model to examine and one feed per image."""
    resolved = resolve_target(target)
    bundle = resolved.bundle
    model = resolved.float_model().path
    with open_runtime(model) as runtime:
        if bundle is not None and folder is None:
            inputs = read_replay_inputs(bundle)
            count = min(limit, len(inputs.images))
            return model, [
                inputs.feed(runtime.inputs[0], bundle.preprocess, slice(row, row + 1)) for row in range(count)
            ]
        if folder is None:
            raise ImageError(
                "Expected images to run the model on, found none.",
                "Add --images DIR with real images; random input says nothing about a trained model.",
            )
        spec = resolved.metadata(runtime.metadata).preprocess
        return model, list(batches(list_images(folder, limit=limit), spec, runtime.inputs[0], 1))


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
