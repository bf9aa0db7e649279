"""``vitexport bench``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from vitexport.benchmark import interleave, summarize
from vitexport.bundle import Bundle
from vitexport.cli.screen import OUT, print_json
from vitexport.model import ModelCard
from vitexport.runtimes import Runtime, RuntimeOptions, available_runtimes, open_runtime
from vitexport.tensors import Array, batch_limit
from vitexport.verdict import replay_feed, replay_inputs

__all__ = ["bench"]


def _sizes(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected batch sizes such as 1,8, found '{value}'") from error
    if min(sizes) < 1:
        raise click.BadParameter(f"batch sizes must be positive, found '{value}'")
    return sizes


@click.command()
@click.argument("targets", metavar="MODEL|BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--runtime", type=click.Choice(available_runtimes()), help="Runtime; each file's own otherwise.")
@click.option("--batch", default="1", callback=_sizes, metavar="N,N", help="Batch sizes.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=3.0, help="Measured time per model and size."
)
@click.option("--warmup", type=click.IntRange(0), default=5, help="Runs before measuring.")
@click.option("--threads", type=click.IntRange(1), help="Runtime threads; the runtime chooses otherwise.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench(
    targets: tuple[Path, ...],
    runtime: str | None,
    batch: tuple[int, ...],
    seconds: float,
    warmup: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure latency and throughput of models, interleaved so that their ratio holds on a busy machine.

    A bundle is measured on the images it carries; a single file on one fixed synthetic image.

    Example: vitexport bench out/quickstart --batch 1,8
    """
    options = RuntimeOptions(threads=threads)
    opened: dict[str, Runtime] = {}
    feeds: dict[str, Array] = {}
    for target in targets:
        for name, model, bundle in _models(target, several=len(targets) > 1):
            opened[name] = open_runtime(model, runtime, options)
            feeds[name] = _feed(opened[name], bundle, model)
    rows: list[dict[str, Any]] = []
    for size in batch:
        fitting = {name: r for name, r in opened.items() if batch_limit(r.inputs[0]) in (None, size)}
        for name in opened.keys() - fitting.keys():
            click.echo(f"{name}: made for batch {batch_limit(opened[name].inputs[0])} only, not {size}", err=True)
        calls = {name: _call(r, feeds[name], size) for name, r in fitting.items()}
        times = interleave(calls, seconds=seconds, warmup=warmup)
        first = next(iter(times.values()), None)
        for name, values in times.items():
            assert first is not None
            speedup = float(np.median(first / values))
            latency = asdict(summarize(values, size))
            rows.append({"model": name, "runtime": opened[name].name, **latency, "speedup": speedup})
    for adapter in opened.values():
        adapter.close()
    if as_json:
        print_json({"results": rows})
        return
    table = Table()
    table.add_column("model")
    for heading in ("batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "speed-up"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = [f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")]
        table.add_row(
            str(row["model"]),
            str(row["batch"]),
            *numbers,
            f"{row['images_per_second']:.1f}",
            f"{row['speedup']:.2f}x",
        )
    OUT.print(table)


def _models(target: Path, *, several: bool) -> list[tuple[str, Path, Bundle | None]]:
    if not target.is_dir():
        return [(str(target), target, None)]
    bundle = Bundle.open(target)
    prefix = f"{target.name}/" if several else ""
    return [(f"{prefix}{artifact.name}", bundle.path(artifact), bundle) for artifact in bundle.models]


def _feed(runtime: Runtime, bundle: Bundle | None, model: Path) -> Array:
    """Return real inputs of a bundle, or a smooth synthetic image for a single file."""
    tensor = runtime.inputs[0]
    if bundle is not None:
        return replay_feed(runtime, bundle, replay_inputs(bundle), slice(0, None))
    if runtime.metadata:
        height, width = ModelCard.from_metadata(runtime.metadata, where=str(model)).preprocess.image_size
    else:
        height, width = (axis if isinstance(axis, int) else 224 for axis in tensor.shape[2:])
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.linspace(0, 1, width, dtype=np.float32)
    if tensor.dtype == "uint8":
        return np.repeat((255 * ramp).astype(np.uint8)[None, :, :, None], 3, axis=3)
    return np.repeat((2 * ramp - 1)[None, None], 3, axis=1).astype(tensor.dtype)


def _call(runtime: Runtime, feed: Array, size: int) -> Callable[[], object]:
    feeds = {runtime.inputs[0].name: np.resize(feed, (size, *feed.shape[1:]))}
    return lambda: runtime.run(feeds)
