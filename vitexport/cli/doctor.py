"""``vitexport doctor``."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.markup import escape
from rich.table import Table

from vitexport.cli.screen import OUT, print_json
from vitexport.device.doctor import diagnose_machine

__all__ = ["doctor"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine can do, which runtimes open, and what to install for the rest.

    Example: vitexport doctor
    """
    machine = diagnose_machine()
    if as_json:
        print_json(asdict(machine))
        return
    OUT.print(
        f"[bold]{machine.system}[/], Python {machine.python}, {machine.cpu}, {machine.cores} cores", highlight=False
    )
    features = ", ".join(f"{name} {_mark(value)}" for name, value in machine.cpu_features.items())
    OUT.print(f"CPU features: {features}", highlight=False)
    if not machine.gpus:
        OUT.print(f"GPUs: none, {machine.cuda}", highlight=False)
    for gpu in machine.gpus:
        memory = f"{gpu.memory_bytes / 2**30:.0f} GiB"
        OUT.print(
            f"GPU: {gpu.name}, compute capability {gpu.compute_capability}, {memory}, {machine.cuda}", highlight=False
        )
    packages = Table(title="packages", title_justify="left", title_style="bold")
    for heading in ("package", "version", "for", "install with"):
        packages.add_column(heading, overflow="fold")
    for package in machine.packages:
        packages.add_row(
            package.name, package.version or "-", package.purpose, "" if package.version else escape(package.install)
        )
    OUT.print(packages)
    runtimes = Table(title="runtimes", title_justify="left", title_style="bold")
    for heading in ("runtime", "opens", "note"):
        runtimes.add_column(heading, overflow="fold")
    for runtime in machine.runtimes:
        runtimes.add_row(runtime.name, _mark(runtime.usable), escape(runtime.note))
    OUT.print(runtimes)
    for line in machine.advice:
        OUT.print(f"- {line}", soft_wrap=True, highlight=False)


def _mark(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "no"
