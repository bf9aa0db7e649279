"""Where benchmark results go: JSON with machine and versions, and a table in docs/ between two markers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vitexport.machine import describe_machine
from vitexport.resume import tool_versions

__all__ = ["RESULTS", "markdown_table", "replace_table", "save_results"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def save_results(name: str, rows: Sequence[Mapping[str, Any]], packages: Sequence[str]) -> dict[str, Any]:
    """Write ``results/NAME.json`` with what was measured, on what and with which versions; return its content."""
    content = {
        "benchmark": name,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": describe_machine(),
        "versions": tool_versions(("vitexport", *packages)),
        "rows": [dict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; floats get three significant digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def replace_table(document: Path, name: str, content: Mapping[str, Any]) -> None:
    """Replace what stands between ``<!-- table: NAME -->`` and ``<!-- end: NAME -->`` in a document."""
    text = document.read_text(encoding="utf-8")
    start, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    machine, versions = content["machine"], content["versions"]
    source = f"{content['date']}, {machine['processor']}, {machine['cores']} cores; " + ", ".join(
        f"{package} {version}" for package, version in versions.items()
    )
    table = markdown_table(content["rows"])
    document.write_text(f"{before}{start}\n{table}\n\n{source}\n{end}{after}", encoding="utf-8")
