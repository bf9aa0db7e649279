"""What people see: progress on standard error, tables on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vitexport.verify.result import VariantResult, VerificationResult

if TYPE_CHECKING:
    from vitexport.pipeline.step import StepEvent
    from vitexport.pipeline.workspace import OnEvent

__all__ = ["OUT", "finish", "result_table", "print_json", "stage_progress", "suggest_bisect"]

OUT = Console()
if not OUT.is_terminal:
    OUT = Console(width=120)  # a pipe or file has no width to fit
_ERR = Console(stderr=True)


def print_json(content: Any) -> None:
    """Print one JSON document to standard output."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


@contextmanager
def stage_progress(stages: tuple[str, ...]) -> Iterator[OnEvent]:
    """Show the stages of a run as they begin, advance and end; plain lines where there is no terminal."""
    if not _ERR.is_terminal:
        yield _plain_line
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[message]}"),
    )
    with Progress(*columns, console=_ERR) as progress:
        tasks = {stage: progress.add_task(stage, total=1, start=False, message="") for stage in stages}

        def show(event: StepEvent) -> None:
            task = tasks.get(event.stage)
            if task is None:
                return
            progress.start_task(task)
            if event.status == "running":
                progress.update(task, message=event.message, completed=event.fraction or 0)
            else:
                progress.update(task, message=event.message, completed=1)

        yield show


def _plain_line(event: StepEvent) -> None:
    if event.fraction is None:
        click.echo(f"{event.stage:<10} {event.status:<8} {event.message}", err=True)


# Two lines each, so that the table fits 80 columns.
_HEADINGS = ("max abs\nerror", "\ncosine", "SQNR\ndB", "top-1\n%", "agree\n%", "p50\nms", "p99\nms", "size\nMB")


def result_table(verification: VerificationResult, title: str) -> Table:
    """Return the closing table: one row per variant."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for variant in verification.variants:
        table.add_row(*_cells(variant))
    return table


def _cells(variant: VariantResult) -> tuple[str, ...]:
    main = variant.parity.main if variant.parity else None
    latency = variant.latency[0] if variant.latency else None
    judged = "[green]ok" if variant.passed else "[red]FAILED"
    return (
        variant.name,
        _cell(main.max_abs if main else None, ".2g"),
        _cell(main.min_cosine if main else None, ".5f"),
        _cell(main.sqnr_db if main else None, ".1f"),
        _cell(variant.accuracy.top1 if variant.accuracy else None, ".2f", 100),
        _cell(main.agreement if main else None, ".2f", 100),
        _cell(latency.p50_ms if latency else None, ".1f"),
        _cell(latency.p99_ms if latency else None, ".1f"),
        _cell(variant.bytes, ".2f", 1e-6),
        "reference" if variant.parity is None else judged,
    )


def _cell(value: float | None, form: str, factor: float = 1) -> str:
    return "-" if value is None else format(value * factor, form)


def finish(verification: VerificationResult, title: str, *, as_json: bool, notes: Sequence[str] = ()) -> int:
    """Print a verification and return the exit code: 0 passed, 3 failed.

    Args:
        verification: The verdict.
        title: Above the table.
        as_json: Print one JSON document instead.
        notes: What a reader must know although nothing failed.
    """
    if as_json:
        print_json(
            {
                "passed": verification.passed,
                "failures": verification.failures(),
                "remarks": notes,
                **asdict(verification),
            }
        )
        return 0 if verification.passed else 3
    OUT.print(result_table(verification, title))
    for gate in verification.gates:
        mark = "[green]ok[/]" if gate.passed else "[red]FAILED[/]"
        value = "not measured" if gate.value is None else f"{gate.value:.4g}"
        OUT.print(
            f"gate {gate.gate} {gate.limit:g}: {value} {mark}"
            + (f" [dim]({escape(gate.note)})[/]" if gate.note else "")
        )
    if verification.unchecked:
        OUT.print(f"[dim]not checked (no limit set): {', '.join(verification.unchecked)}[/]")
    for line in notes:
        OUT.print(f"note: {escape(line)}", soft_wrap=True, highlight=False)
    for line in verification.failures():
        OUT.print(f"[red]FAILED[/] {escape(line)}", soft_wrap=True)
    return 0 if verification.passed else 3


def suggest_bisect(verification: VerificationResult, bundle: Path) -> None:
    """Say how to find the layer at fault, where a variant that has a graph before it disagrees with PyTorch."""
    graphs = [
        variant for variant in verification.variants[2:] if variant.runtime == "onnxruntime" and not variant.passed
    ]
    if graphs and verification.variants[1].passed:
        click.echo(f"find the layer: vitexport bisect {bundle} --variant {graphs[0].name}", err=True)
