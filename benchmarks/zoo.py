"""Export, simplify, compare and quantize the smallest model of every transformer-like module of timm and every vision
class of transformers, with plain ``torch.onnx.export`` beside, and write the table of docs/models.md.

    python -m benchmarks.zoo                   everything: hours
    python -m benchmarks.zoo --resume          the same, keeping the rows that are measured already
    python -m benchmarks.zoo --row NAME ...    these rows alone: a timm model, or a class of transformers

A row is ``right`` (with its figure), ``refused`` (in the words of the error), ``WRONG``, or ``not built``, where the
library itself fails on its defaults. Every step runs in a process of its own with a limit of time and memory, so that a
crash is a row too; the processes are forks of one that has imported the libraries.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.suites.arguments import command_parser
from benchmarks.suites.paths import MODELS_PAGE, RESULTS
from benchmarks.suites.tables import replace_table, save_results
from benchmarks.suites.zoo_rows import ZooRow, huggingface_rows, timm_rows
from benchmarks.suites.zoo_steps import PRELOADED, STEPS, carry_out
from benchmarks.suites.zoo_verdict import is_wrong, table_row

_PACKAGES = ("torch", "timm", "transformers", "onnxruntime")


def main() -> int:
    """Run the sweep; returns 1 when a row is WRONG."""
    parser = command_parser("zoo", __doc__)
    parser.add_argument("--row", action="append", help="only this model (repeatable)")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are measured already")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of zoo.json")
    parser.add_argument("--no-table", action="store_true", help="leave docs/models.md as it is")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--minutes", type=float, default=15, help="limit of each step")
    parser.add_argument("--gigabytes", type=float, default=10, help="limit of each step's memory")
    parser.add_argument("--work", type=Path, help="directory for checkpoints and models (deleted row by row)")
    arguments = parser.parse_args()
    rows = _rows(arguments.row)
    if arguments.list:
        print("\n".join(f"{row.library} {row.group} {row.model}" for row in rows))
        return 0
    kept = arguments.results / "zoo.json"
    found: dict[str, dict[str, Any]] = {}
    if kept.is_file():
        found = {entry["model"]: entry for entry in json.loads(kept.read_text(encoding="utf-8"))["rows"]}
    for row in rows:
        if arguments.resume and row.model in found:
            continue
        with tempfile.TemporaryDirectory(dir=arguments.work, prefix="zoo-") as folder:
            found[row.model] = table_row(row, _measure(row, Path(folder), arguments.minutes, arguments.gigabytes))
        print(json.dumps(found[row.model]), flush=True)
        _keep(list(found.values()), arguments.results, table=not arguments.no_table)
    wrong = [row.model for row in rows if is_wrong(found[row.model])]
    print(f"{len(wrong)} of {len(rows)} rows are wrong{': ' + ', '.join(wrong) if wrong else ''}")
    return 1 if wrong else 0


def _rows(wanted: list[str] | None) -> list[ZooRow]:
    """Return all rows, or those of the named models, which need no search.

    Raises:
        SystemExit: A name is neither a timm model nor a class of the zoo.
    """
    if wanted is None:
        return [*timm_rows(), *huggingface_rows()]
    import timm

    rows = {row.model: row for row in huggingface_rows()}
    for name in wanted:
        if name not in rows and timm.is_model(name):
            rows[name] = ZooRow("timm", timm.model_entrypoint(name).__module__.rpartition(".")[2], name)
    unknown = [name for name in wanted if name not in rows]
    if unknown:
        sys.exit(f"no row named {', '.join(unknown)}; --list prints them")
    return [rows[name] for name in wanted]


def _measure(row: ZooRow, folder: Path, minutes: float, gigabytes: float) -> dict[str, dict[str, Any]]:
    """Run the steps, each in its own process; without a checkpoint or an export, what needs it is left out."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(PRELOADED))
    measured: dict[str, dict[str, Any]] = {}
    for step in STEPS:
        if "failed" in measured.get("build", {}):
            break
        if step == "int8" and "errors" not in measured["export"]:
            continue
        out = folder / f"{step}.json"
        child = processes.Process(target=carry_out, args=(step, row, folder, out, gigabytes))
        child.start()
        child.join(60 * minutes)
        if child.is_alive():
            child.kill()
            child.join()
            measured[step] = {"failed": f"not done in {minutes:g} minutes"}
        elif out.is_file():
            measured[step] = json.loads(out.read_text(encoding="utf-8"))
        else:
            measured[step] = {"failed": f"signal {-(child.exitcode or 0)}"}
    return measured


def _keep(rows: list[dict[str, Any]], results: Path, *, table: bool) -> None:
    content = save_results("zoo", rows, _PACKAGES, results)
    if table:
        replace_table(MODELS_PAGE, "zoo", content)


if __name__ == "__main__":
    sys.exit(main())
