"""What people see: progress on standard error, tables on standard output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from vitexport import tables
from vitexport.files import finite
from vitexport.verification.result import VerificationResult

if TYPE_CHECKING:
    from vitexport.verification.select import Choice

__all__ = ["OUT", "finish", "print_json", "result_table", "rich_table", "say_choice", "suggest_bisect"]

OUT = Console()
if not OUT.is_terminal:
    OUT = Console(width=120)  # a pipe or file has no width to fit
_ERR = Console(stderr=True)


def print_json(content: Any) -> None:
    """Print one JSON document to standard output; numbers that JSON has no name for become null."""
    click.echo(json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False))


# Two lines each, so that the table fits 80 columns.
_WRAPPED = {
    "max abs error": "max abs\nerror",
    "cosine": "\ncosine",
    **{name: name.replace(" ", "\n") for name in ("SQNR dB", "top-1 %", "agree %", "p50 ms", "p99 ms", "size MB")},
}
_COLOURS = {"ok": "[green]ok", "FAILED": "[red]FAILED", "not run here": "[yellow]not run here"}


def result_table(verification: VerificationResult, title: str) -> Table:
    """Return the closing table: one row per variant."""
    shown = verification.tables()[0]
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for index, heading in enumerate(shown.columns):
        justify: JustifyMethod = "left" if index == 0 or heading in shown.text else "right"
        table.add_column(_WRAPPED.get(heading, heading), justify=justify, no_wrap=True)
    for row in shown.rows:
        table.add_row(*row[:-1], _COLOURS.get(row[-1], row[-1]))
    return table


def rich_table(table: tables.Table, *, colours: Mapping[str, str] | None = None) -> Table:
    """Return a result's table for the terminal.

    Args:
        table: The table.
        colours: Style by the text of a row's first cell.
    """
    shown = Table(title=escape(table.title) or None, title_justify="left", title_style="bold")
    for index, heading in enumerate(table.columns):
        flush: JustifyMethod = "left" if index == 0 or heading in table.text else "right"
        shown.add_column(escape(heading), justify=flush, overflow="fold")
    for row in table.rows:
        style = (colours or {}).get(row[0])
        first = f"[{style}]{escape(row[0])}[/]" if style else escape(row[0])
        shown.add_row(first, *(escape(value) for value in row[1:]))
    return shown


def finish(
    verification: VerificationResult, title: str, *, document: Any | None = None, notes: Sequence[str] = ()
) -> int:
    """Print a verification and return the exit code: 0 passed, 3 failed, or not known because something was not run.

    Args:
        verification: The verdict.
        title: Above the table.
        document: Print this as JSON instead.
        notes: What a reader must know although nothing failed.
    """
    if document is not None:
        print_json(document)
        return 0 if verification.passed else 3
    OUT.print(result_table(verification, title))
    for gate in verification.gates:
        mark = "[green]ok[/]" if gate.passed else "[red]FAILED[/]"
        mark = f"[yellow]undecided[/], {mark}" if gate.undecided else mark
        value = "not measured" if gate.value is None else f"{gate.value:.4g}"
        OUT.print(
            f"gate {gate.gate} {gate.limit:g}: {value} {mark}"
            + (f" [dim]({escape(gate.note)})[/]" if gate.note else "")
        )
    for gate in verification.judged_before:
        value = "not measured" if gate.value is None else f"{gate.value:.4g}"
        verdict = f"{'ok' if gate.passed else 'FAILED'}, judged where the bundle was made"
        note = f"; {gate.note}" if gate.note else ""
        OUT.print(f"[dim]gate {gate.gate} {gate.limit:g}: {value} {verdict}{escape(note)}[/]")
    if verification.unchecked:
        OUT.print(f"[dim]not checked (no limit set): {', '.join(verification.unchecked)}[/]")
    for line in notes:
        OUT.print(f"note: {escape(line)}", soft_wrap=True, highlight=False)
    unknown = verification.not_run()
    for line in verification.failures():
        OUT.print(f"{'' if line in unknown else '[red]FAILED[/] '}{escape(line)}", soft_wrap=True)
    return 0 if verification.passed else 3


def say_choice(choice: Choice) -> None:
    """Say on standard error which model is used, and why not a later one of its bundle."""
    click.echo(f"model: {choice.title}", err=True)
    for note in choice.notes:
        click.echo(f"note: {note}", err=True)


def suggest_bisect(verification: VerificationResult, bundle: Path) -> None:
    """Say how to find the layer at fault, where a variant that has a graph before it disagrees with PyTorch."""
    suspect = verification.suspect()
    if suspect is not None:
        click.echo(f"find the layer: vitexport bisect {bundle} --variant {suspect}", err=True)
