"""``vitexport predict``: classes and scores of images, on the screen or into a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from vitexport.api import predict as api
from vitexport.cli.label_options import CLASS_NAMES, PREPROCESS, SCORING
from vitexport.cli.screen import print_json
from vitexport.errors import ImageError

if TYPE_CHECKING:
    from vitexport.predict.job import JobResult
    from vitexport.predict.predictor import Predictor

__all__ = ["predict"]


@click.command(epilog="Example: vitexport predict out/quickstart photo.jpg")
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("sources", metavar="IMAGE|DIR|LIST|GLOB...", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="A .jsonl, .csv or .parquet file; a folder for maps."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes per image.")
@click.option("--runtime", help="Runtime to use.  [default: by file type]")
@click.option("--variant", help="Model inside a bundle, e.g. int8.  [default: the last one its checks accept]")
@PREPROCESS
@CLASS_NAMES
@SCORING
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images per run.")
@click.option("--workers", type=click.IntRange(min=1), help="Parallel workers.  [default: one per core]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each worker's runtime.  [default: 1 on a CPU]")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where to run.")
@click.option("--ray-address", help="Ray cluster to join.  [default: start one here]")
@click.option("--overwrite", is_flag=True, help="Replace an existing results file.")
def predict(
    *,
    model: Path,
    sources: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    top: int,
    runtime: str | None,
    variant: str | None,
    preprocess: Path | None,
    class_names: Path | None,
    scoring: Any,
    batch: int,
    workers: int | None,
    threads: int | None,
    device: str,
    engine: str,
    ray_address: str | None,
    overwrite: bool,
) -> None:
    """Classify images with a bundle or an exported model; with -o, as a job that can be killed and resumed."""
    if output is None and (engine == "ray" or overwrite):
        raise click.UsageError("--engine ray and --overwrite belong to -o FILE.")
    options: dict[str, Any] = {
        "top": top,
        "runtime": runtime,
        "variant": variant,
        "preprocess": preprocess,
        "class_names": class_names,
        "scoring": scoring,
        "batch": batch,
        "workers": workers,
        "threads": threads,
        "device": device,
        "engine": engine,
        "ray_address": ray_address,
    }
    if output is None:
        found = api.predict_files(model, sources, on_open=lambda p: _check(p, classes=not as_json), **options)
        _print(found, as_json)
    else:
        job = api.predict_files(model, sources, output, overwrite=overwrite, progress=True, on_open=_say, **options)
        _print_job(job, as_json)


def _check(predictor: Predictor, *, classes: bool) -> None:
    if classes:
        predictor.require_classes()
    _say(predictor)


def _say(predictor: Predictor) -> None:
    click.echo(f"{predictor.name}: {predictor.variant} (sha256 {predictor.version})", err=True)
    for note in predictor.notes:
        click.echo(f"note: {note}", err=True)


def _print(found: api.Predictions, as_json: bool) -> None:
    bad = found.failed
    if as_json:
        print_json(found.to_dict())
    elif len(bad) < len(found):
        _print_table(found)
    if bad:
        lines = "\n".join(row.error for row in bad[:5])
        count = f"{len(bad)} of {len(found)} images"
        raise ImageError(f"{count} could not be used:\n{lines}", "Leave them out or fix them.")


def _print_table(found: api.Predictions) -> None:
    table = Table(Column("image", overflow="fold"), "label", "score", box=None, pad_edge=False)
    for cells in found.tables()[0].rows:
        table.add_row(*map(escape, cells))
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # a pipe gets whole lines
    console.print(table)


def _print_job(job: JobResult, as_json: bool) -> None:
    if as_json:
        print_json(job.to_dict())
    else:
        taken = f", {job.resumed} of them from the run before" if job.resumed else ""
        click.echo(
            f"{job.output}: {job.images} images{taken}, {job.failed} unusable, {job.images_per_second:.1f} images/s"
        )
    if job.failed:
        lines = "\n".join(job.reasons)
        raise ImageError(
            f"{job.failed} of {job.images} images could not be used, the first of them:\n{lines}",
            f"'{job.output}' has the reason of each in its error column.",
        )
