"""Which room may import which: the table that the architecture test holds and docs/architecture.md shows.

``python -m tests.support.layers`` writes the table into the page again.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.paths import ROOT

__all__ = ["LAYERS", "PACKAGE", "PAGE", "layer_of", "render_page", "render_table"]

PACKAGE = ROOT / "vitexport"
PAGE = ROOT / "docs" / "architecture.md"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "extras", "tables", "closing"),
    ("files", "intervals", "machine", "tensors", "scoring", "source"),
    ("inputs", "recipe"),
    ("bundle",),
    ("runtimes",),
    ("device", "benchmark"),
    ("verification", "host", "engine"),
    ("predict", "report"),
    ("pipeline", "server", "deploy"),
    ("api",),
    ("cli",),
)
"""A module imports from its own room, from rooms of its own layer (never in a circle), and from layers above."""

_START, _END = "<!-- table: layers -->", "<!-- end: layers -->"


def layer_of(room: str) -> int:
    """Return the layer of a room or top-level module, or -1."""
    return next((index for index, rooms in enumerate(LAYERS) if room in rooms), -1)


def render_table() -> str:
    """Return the table: a row for each room, with the first sentence of its docstring."""
    rows = ["| layer | room | what is there |", "| --- | --- | --- |"]
    for index, rooms in enumerate(LAYERS, start=1):
        for room in rooms:
            folder = (PACKAGE / room).is_dir()
            path = PACKAGE / room / "__init__.py" if folder else PACKAGE / f"{room}.py"
            rows.append(f"| {index} | `{room}{'/' * folder}` | {_summary(path)} |")
    return "\n".join(rows)


def render_page(text: str) -> str:
    """Return the page with today's table."""
    head, _, rest = text.partition(_START)
    _, _, tail = rest.partition(_END)
    return f"{head}{_START}\n{render_table()}\n{_END}{tail}"


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).replace("``", "`").removesuffix(".")


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
