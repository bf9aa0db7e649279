"""Where benchmark results go: JSON with machine and versions, and a table in docs/ between two markers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.suites.paths import BENCHMARKS_PAGE, MODELS_PAGE, QUANTIZATION_PAGE, RESULTS, ROOT
from benchmarks.suites.quantizer_rows import MODELS
from benchmarks.suites.quantizer_tables import best_per_model, figures_of, tools
from vitexport.machine import describe_machine
from vitexport.pipeline.step import tool_versions
from vitexport.tables import Table

__all__ = [
    "DOCUMENTS",
    "SUMMARIES",
    "keep_rows",
    "markdown_table",
    "render_document",
    "render_documents",
    "replace_section",
    "replace_table",
    "save_results",
    "text_table",
]

DOCUMENTS = (BENCHMARKS_PAGE, MODELS_PAGE, QUANTIZATION_PAGE, ROOT / "README.md")
"""Documents with tables of results."""


def save_results(
    name: str, rows: Sequence[Mapping[str, Any]], packages: Sequence[str], results: Path = RESULTS
) -> dict[str, Any]:
    """Write ``results/NAME.json`` with what was measured, on what and with which versions; return its content."""
    content = {
        "benchmark": name,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": describe_machine(),
        "versions": tool_versions(("vitexport", *packages)),
        "rows": [dict(row) for row in rows],
    }
    results.mkdir(exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def keep_rows(name: str, rows: Sequence[Mapping[str, Any]], packages: Sequence[str]) -> None:
    """Put rows in the place of those of the same model and batch, and write the table of ``docs/benchmarks.md``."""
    path = RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    fresh = {(row["model"], row["batch"]) for row in rows}
    merged = [*(row for row in earlier if (row["model"], row["batch"]) not in fresh), *rows]
    merged.sort(key=lambda row: (str(row["model"]), int(row["batch"])))
    replace_table(BENCHMARKS_PAGE, name, save_results(name, merged, packages))


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; floats get three significant digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    cells = [[_cell(row.get(column, "")).replace("|", r"\|") for column in columns] for row in rows]
    lines += ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join(lines)


def text_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the same with its columns aligned, for a terminal."""
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    cells = tuple(tuple(_cell(row.get(column, "")) for column in columns) for row in rows)
    words = tuple(column for column in columns if any(row.get(column) and isinstance(row[column], str) for row in rows))
    return Table(title, columns, cells, text=words).to_text()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return " ".join(str(value).split())


def replace_table(document: Path, name: str, content: Mapping[str, Any]) -> None:
    """Put results, with machine and versions, into a document as :func:`replace_section` does."""
    document.write_text(_filled(document.read_text(encoding="utf-8"), name, content), encoding="utf-8")


def replace_section(document: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- table: NAME -->`` and ``<!-- end: NAME -->`` in a document.

    Raises:
        ValueError: The document has no such place.
    """
    document.write_text(_between_markers(document.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def render_document(text: str, results: Path = RESULTS) -> str:
    """Return a document with every table filled in whose figures are in ``results``.

    ``<!-- table: NAME -->`` takes the rows of ``NAME.json``; a name of :data:`SUMMARIES` takes some of another file's.
    Tables without such a file stay as they are: their benchmark was not run yet, or writes them itself.
    """
    for name in re.findall(r"<!-- table: ([\w-]+) -->", text):
        source, summarize = SUMMARIES.get(name, (name, None))
        path = results / f"{source}.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if {"rows", "machine", "versions"} <= content.keys():
            rows = content["rows"] if summarize is None else summarize(content["rows"])
            text = _filled(text, name, {**content, "rows": rows})
    return text


def render_documents() -> None:
    """Write every table of :data:`DOCUMENTS` that has results."""
    for document in DOCUMENTS:
        document.write_text(render_document(document.read_text(encoding="utf-8")), encoding="utf-8")


def _filled(text: str, name: str, content: Mapping[str, Any]) -> str:
    if not content["rows"]:
        return _between_markers(text, name, "Not measured yet.")
    machine, versions = content["machine"], content["versions"]
    features = f" ({machine['features']})" if "features" in machine else ""
    source = f"{content['date']}, {machine['processor']}{features}, {machine['cores']} cores; " + ", ".join(
        f"{package} {version}" for package, version in versions.items()
    )
    return _between_markers(text, name, f"{markdown_table(content['rows'])}\n\n{source}")


def _between_markers(text: str, name: str, section: str) -> str:
    start, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"Expected '{start}' and '{end}' in the document.")
    return f"{before}{start}\n{section}\n{end}{after}"


def _speed_by_model(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per way to run a model at batch 1, with a column of speed-ups for each model."""
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    chosen = [row for row in rows if row["batch"] == 1 and "speed" in row and "again" not in str(row["candidate"])]
    found: dict[str, dict[str, Any]] = {}
    for row in chosen:
        entry = found.setdefault(str(row["candidate"]), {"speed at batch 1": row["candidate"]})
        entry[str(row["model"])] = f"{row['speed']:.2f}x"
    return [{"speed at batch 1": e["speed at batch 1"], **{m: e.get(m, "") for m in models}} for e in found.values()]


SUMMARIES: dict[str, tuple[str, Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]]] = {
    "inference-summary": ("inference", _speed_by_model),
    "quantizers-summary": ("quantizers", best_per_model),
    "quantizers-tools": ("quantizers", tools),
    **{f"quantizers-{model.name}": ("quantizers", partial(figures_of, model.name)) for model in MODELS},
}
"""Tables made of some of another benchmark's figures: name to (results file, what it shows)."""
