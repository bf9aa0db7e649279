"""From a matplotlib figure to SVG that belongs to the page: its colours, its fonts, readable in light and dark.

Figures are drawn with placeholder colours that become CSS variables, so that one drawing follows the reader's colour
scheme; text stays text, in the page's own font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitexport.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GRID", "INK", "MUTED", "SERIES", "Figure", "Picture", "draw", "legend_above"]

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#0a0101", "#0a0102", "#0a0103", "#0a0104", "#0a0105", "#0a0106")
"""Placeholder colours of data series, in the order of the variants."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {
    color: f"--series-{index}" for index, color in enumerate(SERIES, start=1)
}

# Any: matplotlib's type lists every key it knows, and that list differs between its versions.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vitexport",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Figure:
    """A drawing for the page.

    Attributes:
        key: Identifier, unique on the page.
        title: Heading above it.
        summary: What it shows, in words, for those who do not see it and those in a hurry.
        svg: Inline SVG element.
        wide: Whether it needs the full width of the page.
    """

    key: str
    title: str
    summary: str
    svg: str
    wide: bool = False


class Picture:
    """A figure being drawn; :attr:`svg` holds the result after the ``with`` block of :func:`draw`."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.svg = ""


@contextmanager
def draw(key: str, label: str, *, width: float = 5.2, height: float = 2.6) -> Iterator[Picture]:
    """Draw one pair of axes.

    Args:
        key: Identifier that makes the SVG's ids unique on the page.
        label: Accessible name of the drawing.
        width: Width in inches of 72 SVG units; the page scales it.
        height: Height in the same unit.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report", "Drawing report.html") from error
    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        picture = Picture(canvas.subplots())
        yield picture
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    picture.svg = _inline(buffer.getvalue(), key, label)


def legend_above(axes: Axes) -> None:
    """Put the legend above the drawing, where it covers nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, borderaxespad=0.2, columnspacing=1.4)


def _inline(text: str, key: str, label: str) -> str:
    """Turn a standalone SVG document into an element of the page."""
    svg = text[text.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{key}-", svg)
    # The page's font, in the size matplotlib chose.
    svg = re.sub(r"font: ([\d.]+px) '[^']*'[^;\"]*", r"font-size: \1", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[\d.]+pt"', "", head)
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    # Coordinates with fewer digits: a hundredth of a point is not seen. Labels are text and stay as they are.
    rest = re.sub(r'\b(?:d|x|y|transform)="[^"]*"', lambda m: re.sub(r"(\d+\.\d{2})\d+", r"\1", m[0]), rest)
    return f'{head} role="img" aria-label="{escaped}">{rest}'
