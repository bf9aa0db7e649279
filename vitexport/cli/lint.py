"""``vitexport lint``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from vitexport.api import analysis as api
from vitexport.api.analysis import LintResult
from vitexport.cli.engine_options import parse_shapes
from vitexport.cli.screen import OUT, print_json, rich_table, say_choice

__all__ = ["findings_table", "lint"]


@click.command()
@click.argument("source", metavar="MODEL.onnx|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "target",
    default="tensorrt",
    metavar="TARGET",
    help="tensorrt (the oldest, 10.3), tensorrt:10.3, tensorrt:11, tensorrt:rtx or onnxruntime.",
)
@click.option("--device", metavar="NAME", help="Device profile, e.g. orin-nano: also checks its precisions.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=MIN:OPT:MAX", help="Range of a dynamic input.")
@click.option("--variant", metavar="NAME", help="Model of a bundle; else the last ONNX file its checks accept.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def lint(
    ctx: click.Context,
    source: Path,
    target: str,
    device: str | None,
    shapes: tuple[str, ...],
    variant: str | None,
    as_json: bool,
) -> None:
    """Find what an inference compiler will reject, or accept and run slowly. Exits 3 if anything will fail.

    Example: vitexport lint vit-int8.onnx --for tensorrt:10.3 --device orin-nano
    """
    found = api.lint(source, target, device=device, shapes=tuple(parse_shapes(shapes)), variant=variant)
    say_choice(found.choice)
    if as_json:
        print_json(found.to_dict())
    elif found.findings:
        OUT.print(findings_table(found))
    else:
        OUT.print(f"{escape(str(found.model))}: nothing found for {found.target}", soft_wrap=True, highlight=False)
    ctx.exit(0 if found.passed else 3)


def findings_table(found: LintResult) -> Table:
    """Return the findings as a table; equal findings on many nodes share a row."""
    return rich_table(found.tables()[0], colours={"error": "red", "warning": "yellow"})
