"""``vitexport predict``: classes and scores of images, on the screen or into a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitexport.predict.batch import Row
    from vitexport.predict.settings import JobSettings

__all__ = ["predict"]


@click.command(epilog="Example: vitexport predict out/quickstart photo.jpg")
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("sources", metavar="IMAGE|DIR|LIST|GLOB...", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A .jsonl, .csv or .parquet file."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes per image.")
@click.option("--runtime", help="Runtime to use.  [default: by file type]")
@click.option("--variant", help="Model inside a bundle, e.g. int8.  [default: the last one its checks accept]")
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
    batch: int,
    workers: int | None,
    threads: int | None,
    device: str,
    engine: str,
    ray_address: str | None,
    overwrite: bool,
) -> None:
    """Classify images with a bundle or an exported model; with -o, as a job that can be killed and resumed."""
    from vitexport.predict.settings import JobSettings
    from vitexport.predict.sources import expand_sources

    if output is None and (engine == "ray" or overwrite):
        raise click.UsageError("--engine ray and --overwrite belong to -o FILE.")
    settings = JobSettings(
        model=model,
        runtime=runtime,
        variant=variant,
        top=top,
        batch=batch,
        workers=workers,
        threads=threads,
        device=device,
        engine="ray" if engine == "ray" else "local",
        address=ray_address,
    )
    paths = expand_sources(sources)
    if output is None:
        _print(settings, paths, as_json)
    else:
        _write(settings, paths, output, overwrite=overwrite, as_json=as_json)


def _print(settings: JobSettings, paths: Sequence[Path], as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from vitexport.errors import ImageError
    from vitexport.machine import usable_cores
    from vitexport.predict.batch import ChunkPredictor, chunks, predict_chunks

    work = chunks(paths, settings.batch)
    with settings.open() as predictor:
        if not as_json:
            predictor.require_classes()
        for note in predictor.notes:
            click.echo(note, err=True)
        results = predict_chunks(ChunkPredictor(predictor, settings.top), work, settings.workers or usable_cores())
        rows = [row for result in results for row in result.rows]
        if as_json:
            document = {"model": predictor.name, "variant": predictor.variant, "results": [asdict(row) for row in rows]}
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        elif any(not row.error for row in rows):
            _table(rows)
    bad = [row for row in rows if row.error]
    if bad:
        lines = "\n".join(row.error for row in bad[:5])
        raise ImageError(f"{len(bad)} of {len(rows)} images could not be used:\n{lines}", "Leave them out or fix them.")


def _table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("image", overflow="fold"), "label", "score", box=None, pad_edge=False)
    for row in rows:
        for position, prediction in enumerate(row.predictions):
            table.add_row(row.image if position == 0 else "", prediction.label, f"{prediction.score:.4f}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # a pipe gets whole lines
    console.print(table)


def _write(settings: JobSettings, paths: Sequence[Path], output: Path, *, overwrite: bool, as_json: bool) -> None:
    import json
    import time
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vitexport.errors import ImageError
    from vitexport.predict.job import predict_to_file

    start = time.perf_counter()
    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("predict", total=len(paths))
        result = predict_to_file(
            settings,
            paths,
            output,
            overwrite=overwrite,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    seconds = time.perf_counter() - start
    if as_json:
        click.echo(json.dumps({"output": str(output), **asdict(result), "seconds": round(seconds, 3)}, indent=2))
    else:
        taken = f", {result.resumed} of them from the run before" if result.resumed else ""
        rate = (result.images - result.resumed) / seconds
        click.echo(f"{output}: {result.images} images{taken}, {result.failed} unusable, {rate:.1f} images/s")
    if result.failed:
        lines = "\n".join(result.reasons)
        raise ImageError(
            f"{result.failed} of {result.images} images could not be used, the first of them:\n{lines}",
            f"'{output}' has the reason of each in its error column.",
        )
