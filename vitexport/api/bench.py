"""Latency, throughput and memory of models, by turns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from vitexport.api.arguments import require_positive
from vitexport.benchmark.compare import Measured, find_models, time_models, tune
from vitexport.benchmark.latency import load_warning, pin
from vitexport.errors import RecipeError, RuntimeBackendError
from vitexport.files import as_path
from vitexport.inputs.shapes import DYNAMIC
from vitexport.machine import describe_machine
from vitexport.runtimes import RuntimeOptions
from vitexport.tables import Table, Tabular, cell

__all__ = ["BenchResult", "bench"]


@dataclass(frozen=True, repr=False)
class BenchResult(Tabular):
    """What every model took, at every batch size.

    Attributes:
        rows: One per model and batch size; with ``tune``, the best number of threads of each model comes first.
        skipped: Models that take another batch than was asked for, or that no runtime here can execute.
        machine: Where it was measured.
        threads: Threads every model was given; None where the runtime chose.
        warnings: Why the figures may mean little, e.g. a busy machine.
    """

    rows: tuple[Measured, ...]
    skipped: tuple[str, ...]
    machine: dict[str, str]
    threads: int | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "machine": self.machine,
            "threads": self.threads,
            "warnings": list(self.warnings),
            "skipped": list(self.skipped),
            "results": [row.to_dict() for row in self.rows],
        }

    def draw(self, out: str | PathLike[str]) -> Path:
        """Draw the result as an SVG picture.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from vitexport.report.comparison_plot import draw_comparison

        draw_comparison(self.rows, Path(out))
        return Path(out)

    def tables(self) -> tuple[Table, ...]:
        """Return one row per model and batch size."""
        tuned = any(row.threads is not None for row in self.rows)
        powered = any(row.power is not None for row in self.rows)
        columns = ("model", *("threads",) * tuned, "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "speed-up")
        columns = (*columns, "memory MB", *("W", "J/image") * powered)
        return (Table("", columns, tuple(_measured_cells(row, tuned, powered) for row in self.rows)),)


def _measured_cells(row: Measured, tuned: bool, powered: bool) -> tuple[str, ...]:
    latency = row.latency
    cells = [row.subject, *[str(row.threads)] * tuned, str(latency.batch)]
    cells += [f"{value:.2f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)]
    cells += [f"{latency.images_per_second:.1f}", f"{row.speedup:.2f}x", cell(row.memory_bytes, ".0f", 1e-6)]
    if powered:
        energy = row.power.joules_per_image(latency.images_per_second) if row.power else None
        cells += [cell(row.power.watts if row.power else None, ".2f"), cell(energy, ".3f")]
    return tuple(cells)


def bench(
    targets: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    runtimes: Sequence[str] = (),
    batch: int | Sequence[int] = (1,),
    shapes: Mapping[str, Sequence[int]] | None = None,
    seconds: float = 3.0,
    warmup: int = 5,
    threads: int | None = None,
    cpus: Collection[int] | None = None,
    tune_threads: bool = False,
) -> BenchResult:
    """Measure latency, throughput and memory of models by turns, so that their ratio holds on a busy machine.

    A bundle is measured on the images it carries; a single file on one fixed synthetic image. On Jetson the power of
    the module and the energy of an image are measured too.

    Example::

        print(vx.bench(["out/vit", "other.onnx"], batch=(1, 8), seconds=0.1))

    Args:
        targets: Model files and bundle directories; the first model is what the others are compared with.
        runtimes: Names; empty takes each file's own, several are compared.
        batch: Images per run, one measurement each.
        shapes: Input name to sizes of dynamic axes, one per axis, for files that do not say them; the first axis is
            ``batch``'s, or -1.
        seconds: Measured time per model and batch size, in seconds.
        warmup: Runs before measuring.
        threads: Runtime threads; None lets the runtime choose, or takes one for each of ``cpus``.
        cpus: Keep this process, from now on, on these cores.
        tune_threads: Find the best number of threads of each model instead.

    Raises:
        RuntimeBackendError: A model does not open here, or none takes a batch of these sizes.
        RecipeError: A shape does not fit, or is missing where another axis than the first is dynamic.
    """
    if isinstance(targets, Sequence) and not isinstance(targets, str):
        wanted = [as_path(entry, "a model or bundle") for entry in targets]
    else:
        wanted = [as_path(targets, "a model or bundle")]
    sizes = (batch,) if isinstance(batch, int) else tuple(batch)
    require_positive(seconds=seconds, threads=threads, **{f"batch[{i}]": size for i, size in enumerate(sizes)})
    if tune_threads and threads is not None:
        raise RecipeError(
            f"Expected no number of threads when the best one is searched for, found {threads}.", "Leave threads out."
        )
    if not sizes:
        raise RecipeError("Expected at least one batch size, found none.", "Pass batch=1, or several as (1, 8).")
    if cpus is not None:
        pin(cpus)
        threads = threads if threads is not None or tune_threads else len(cpus)
    warning = load_warning()
    candidates = [(model, runtime) for model in find_models(wanted) for runtime in runtimes or (None,)]
    options = RuntimeOptions(threads=threads)
    sized = dict(shapes or {})
    for name, axes in sized.items():
        if len(axes) and axes[0] != DYNAMIC and {axes[0]} != set(sizes):
            raise RecipeError(
                f"Expected the first axis of '{name}' to be -1, found {axes[0]} beside a batch of "
                f"{' and '.join(map(str, sizes))}.",
                "The number of images is `batch` (--batch).",
            )
    skipped: tuple[str, ...] = ()
    if tune_threads:
        rows = [
            row
            for model, runtime in candidates
            for size in sizes
            for row in tune(model, runtime, options, size, seconds=seconds, warmup=warmup, shapes=sized)
        ]
    else:
        rows, skipped = time_models(candidates, options, sizes, seconds=seconds, warmup=warmup, shapes=sized)
    if not rows:
        raise RuntimeBackendError(
            f"No model here takes a batch of {' or '.join(map(str, sizes))}.", "Choose the size it was exported for."
        )
    warnings = () if warning is None else (warning,)
    return BenchResult(tuple(rows), skipped, describe_machine(), threads, warnings)
