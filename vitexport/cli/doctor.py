"""``vitexport doctor``."""

from __future__ import annotations

import click
from rich.markup import escape

from vitexport.api import machine as api
from vitexport.cli.screen import OUT, print_json, rich_table

__all__ = ["doctor"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine can do, which runtimes open, and what to install for the rest.

    Example: vitexport doctor
    """
    machine = api.doctor()
    if as_json:
        print_json(machine.to_dict())
        return
    OUT.print(
        f"[bold]{machine.system}[/], Python {machine.python}, {machine.cpu}, {machine.cores} cores", highlight=False
    )
    facts, packages, runtimes, *_ = machine.tables()
    for name, value in facts.rows:
        if name in ("CPU features", "GPUs", "GPU"):
            OUT.print(f"{name}: {escape(value)}", highlight=False)
    OUT.print(rich_table(packages))
    OUT.print(rich_table(runtimes))
    for line in machine.advice:
        OUT.print(f"- {line}", soft_wrap=True, highlight=False)
