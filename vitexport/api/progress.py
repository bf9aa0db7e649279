"""Progress of long work: the bar of the command line, a function of the caller's, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from vitexport.errors import RecipeError
from vitexport.files import StepEvent

__all__ = ["OnEvent", "Progress", "StepEvent", "shown"]

OnEvent: TypeAlias = Callable[[StepEvent], None]

Progress: TypeAlias = bool | OnEvent
"""True draws a bar on standard error, a function is called with every :class:`StepEvent`, False shows nothing."""


@contextmanager
def shown(progress: Progress, stages: Sequence[str]) -> Iterator[OnEvent]:
    """Yield what to call as stages begin, advance and end.

    Args:
        progress: See :data:`Progress`.
        stages: Names of the stages that will come, in order.
    """
    if progress is False:
        yield _ignore
    elif progress is True:
        with _bars(stages) as show:
            yield show
    elif callable(progress):
        yield progress
    else:
        raise RecipeError(
            f"Expected progress to be True, False or a function, found {progress!r}.", "Pass progress=True for a bar."
        )


def _ignore(event: StepEvent) -> None:
    """Show nothing."""


@contextmanager
def _bars(stages: Sequence[str]) -> Iterator[OnEvent]:
    """Draw one row per stage; plain lines where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_line
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[message]}"),
    )
    with Progress(*columns, console=console) as progress:
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
        print(f"{event.stage:<10} {event.status:<8} {event.message}", file=sys.stderr)
