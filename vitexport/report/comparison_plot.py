"""A drawing of what ``vitexport bench`` measured: latency of every run, and images per second over the batch size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitexport.benchmark.compare import Measured
from vitexport.errors import MissingDependencyError
from vitexport.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_comparison"]

# Okabe and Ito's colours, which stay apart for colour-blind readers.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

_LONGEST = 36
"""Letters of a name that leave room for the drawing."""


def draw_comparison(rows: Sequence[Measured], path: Path) -> None:
    """Draw measurements as SVG.

    One line of boxes per model and batch size (the middle half of its runs, whiskers from 5 to 95 %, the median as a
    line); with several batch sizes, a second panel with images per second.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report", "Drawing a plot") from error
    sizes = list(dict.fromkeys(row.latency.batch for row in rows))
    panels = 2 if len(sizes) > 1 else 1
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(rows) + 2.8 * (panels - 1)), layout="constrained")
    heights = [0.36 * len(rows) + 0.6, 2.6][:panels]
    axes = figure.subplots(panels, 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(dict.fromkeys(map(_series, rows)))}
    _latency(axes[0], rows, colours)
    if panels > 1:
        _throughput(axes[1], rows, colours)
    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vitexport"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_atomic(path, drawn.getvalue())


def _series(row: Measured) -> str:
    """Return what a row is called, cut from the left where a path is long."""
    name = row.subject if len(row.subject) <= _LONGEST else f"…{row.subject[1 - _LONGEST :]}"
    return name if row.threads is None else f"{name}, {row.threads} threads"


def _latency(axes: Axes, rows: Sequence[Measured], colours: dict[str, str]) -> None:
    drawn = axes.boxplot(
        [list(row.latency.sample_ms) for row in rows],
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        medianprops={"color": "black"},
    )
    for box, row in zip(drawn["boxes"], rows, strict=True):
        box.set_facecolor(colours[_series(row)])
        box.set_alpha(0.75)
    axes.set_yticks(range(1, len(rows) + 1), [f"{_series(row)}, batch {row.latency.batch}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds per run")
    axes.grid(axis="x", alpha=0.3)


def _throughput(axes: Axes, rows: Sequence[Measured], colours: dict[str, str]) -> None:
    for name, colour in colours.items():
        points = sorted((row.latency.batch, row.latency.images_per_second) for row in rows if _series(row) == name)
        axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=name)
    axes.set_xscale("log", base=2)
    sizes = sorted({row.latency.batch for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size")
    axes.set_ylabel("images per second")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
