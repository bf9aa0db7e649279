"""``vitexport bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from vitexport.bench.compare import Measured, Model, Subject, find_models, measure_subjects, open_subject, tune
from vitexport.bench.latency import load_warning, pin
from vitexport.cli.screen import OUT, print_json
from vitexport.errors import RuntimeBackendError
from vitexport.machine import describe_machine
from vitexport.runtimes import RuntimeOptions, available_runtimes

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
    if cpus is not None:
        pin(cpus)
        threads = threads if threads is not None or tuned else len(cpus)
    warning = load_warning()
    if warning:
        click.echo(f"warning: {warning}", err=True)
    options = RuntimeOptions(threads=threads)
    candidates = [(model, runtime) for model in find_models(targets) for runtime in runtimes or (None,)]
    if tuned:
        rows = [
            row
            for model, runtime in candidates
            for size in batch
            for row in tune(model, runtime, options, size, seconds=seconds, warmup=warmup)
        ]
    else:
        rows = _compare(candidates, options, batch, seconds, warmup)
    if not rows:
        raise RuntimeBackendError(
            f"No model here takes a batch of {' or '.join(map(str, batch))}.", "Choose the size it was exported for."
        )
    if plot is not None:
        from vitexport.report.comparison_plot import draw_comparison

        draw_comparison(rows, plot)
        click.echo(f"wrote {plot}", err=True)
    if as_json:
        content = {"machine": describe_machine(), "threads": threads, "warnings": [warning] if warning else []}
        print_json({**content, "results": [_as_json(row) for row in rows]})
        return
    OUT.print(_table(rows, tuned=tuned))


def _compare(
    candidates: Sequence[tuple[Model, str | None]],
    options: RuntimeOptions,
    batch: Sequence[int],
    seconds: float,
    warmup: int,
) -> list[Measured]:
    several = len({runtime for _, runtime in candidates}) > 1
    subjects: list[Subject] = []
    rows: list[Measured] = []
    try:
        for model, runtime in candidates:
            name = _free(f"{model.name} ({runtime})" if several else model.name, subjects)
            subjects.append(open_subject(model, runtime, options, batch=max(batch), name=name))
        for size in batch:
            fitting = [subject for subject in subjects if _fits(subject, size)]
            rows += measure_subjects(fitting, size, seconds=seconds, warmup=warmup) if fitting else ()
    finally:
        for subject in subjects:
            subject.runtime.close()
    return rows


def _free(name: str, subjects: Sequence[Subject]) -> str:
    """Return a name of its own: a model named twice is measured twice, which shows the noise."""
    count = 1 + sum(subject.name == name or subject.name.startswith(f"{name} #") for subject in subjects)
    return name if count == 1 else f"{name} #{count}"


def _fits(subject: Subject, size: int) -> bool:
    if subject.takes(size):
        return True
    click.echo(f"{subject.name}: made for another batch than {size}", err=True)
    return False


def _as_json(row: Measured) -> dict[str, Any]:
    entry: dict[str, Any] = {"model": row.subject, "runtime": row.runtime, **asdict(row.latency)}
    entry |= {"speedup": row.speedup, "memory_bytes": row.memory_bytes}
    if row.threads is not None:
        entry["threads"] = row.threads
    if row.power is not None:
        energy = row.power.joules_per_image(row.latency.images_per_second)
        entry["power"] = {**asdict(row.power), "joules_per_image": energy}
    return entry


def _table(rows: Sequence[Measured], *, tuned: bool) -> Table:
    title = "The first of each model is the best: the fewest threads among the fastest." if tuned else None
    table = Table(caption=title, caption_justify="left")
    powered = any(row.power for row in rows)
    table.add_column("model")
    headings = ["batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "speed-up", "memory MB"]
    for heading in ["threads"] * tuned + headings + ["W", "J/image"] * powered:
        table.add_column(heading, justify="right")
    for row in rows:
        latency = row.latency
        cells = [str(row.threads)] if tuned else []
        cells += [str(latency.batch)]
        cells += [f"{value:.2f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)]
        cells += [f"{latency.images_per_second:.1f}", f"{row.speedup:.2f}x"]
        cells.append("-" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.0f}")
        if powered:
            energy = row.power.joules_per_image(latency.images_per_second) if row.power else None
            cells += [f"{row.power.watts:.2f}" if row.power else "-", "-" if energy is None else f"{energy:.3f}"]
        table.add_row(row.subject, *cells)
    return table
