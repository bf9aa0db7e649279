"""``vitexport bench``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from vitexport.api import bench as api
from vitexport.cli.screen import OUT, print_json, rich_table
from vitexport.cli.shape_option import shape_option
from vitexport.runtimes import available_runtimes

__all__ = ["bench", "parse_cores"]


def _sizes(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected batch sizes such as 1,8, found '{value}'") from error
    if min(sizes) < 1:
        raise click.BadParameter(f"batch sizes must be positive, found '{value}'")
    return sizes


def parse_cores(text: str) -> frozenset[int]:
    """Return the cores that ``0,2-3`` names.

    Raises:
        click.BadParameter: It is no such list.
    """
    cores: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            cores.update(range(int(first), int(last or first) + 1))
    except ValueError as error:
        raise click.BadParameter(f"expected cores such as 0,2-3, found '{text}'") from error
    return frozenset(cores)


def _cores(ctx: click.Context, param: click.Parameter, value: str | None) -> frozenset[int] | None:
    return None if value is None else parse_cores(value)


@click.command()
@click.argument("targets", metavar="MODEL|BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=click.Choice(available_runtimes()),
    help="Runtime; each file's own otherwise. Repeat to compare several.",
)
@click.option("--batch", default="1", callback=_sizes, metavar="N,N", help="Batch sizes.")
@shape_option
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=3.0, help="Measured time per model and size."
)
@click.option("--warmup", type=click.IntRange(0), default=5, help="Runs before measuring.")
@click.option("--threads", type=click.IntRange(1), help="Runtime threads; the runtime chooses otherwise.")
@click.option("--cpus", callback=_cores, metavar="N,N-M", help="Keep everything on these cores.")
@click.option("--tune", "tuned", is_flag=True, help="Find the best number of threads of each model.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also draw the result: FILE.svg.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench(
    targets: tuple[Path, ...],
    runtimes: tuple[str, ...],
    batch: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]],
    seconds: float,
    warmup: int,
    threads: int | None,
    cpus: frozenset[int] | None,
    tuned: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure latency, throughput and memory of models, interleaved so that their ratio holds on a busy machine.

    A bundle is measured on the images it carries; a single file on one fixed synthetic image. On Jetson the power of
    the module and the energy of an image are measured too.

    Example: vitexport bench out/quickstart --batch 1,8
    """
    if tuned and threads is not None:
        raise click.UsageError("--tune tries every number of threads; leave out --threads.")
    if plot is not None and plot.suffix != ".svg":
        raise click.BadParameter(f"expected a name that ends with .svg, found '{plot}'", param_hint="--plot")
    found = api.bench(
        targets,
        runtimes=runtimes,
        batch=batch,
        shapes=shapes,
        seconds=seconds,
        warmup=warmup,
        threads=threads,
        cpus=cpus,
        tune_threads=tuned,
    )
    for line in (*(f"warning: {text}" for text in found.warnings), *found.skipped):
        click.echo(line, err=True)
    if plot is not None:
        click.echo(f"wrote {found.draw(plot)}", err=True)
    if as_json:
        print_json(found.to_dict())
        return
    table = rich_table(found.tables()[0])
    if tuned:
        table.caption = "The first of each model is the best: the fewest threads among the fastest."
        table.caption_justify = "left"
    OUT.print(table)
