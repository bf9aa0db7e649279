"""``vitexport lint``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from vitexport.cli.engine_options import parse_shapes, resolve_model
from vitexport.cli.screen import OUT, print_json

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
@click.option("--variant", metavar="NAME", help="Which model of a bundle; the last ONNX file otherwise.")
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
    from vitexport.device.profiles import device_profile
    from vitexport.host.lint import lint_model, parse_target

    profile = None if device is None else device_profile(device)
    model, _ = resolve_model(source, variant)
    wanted = parse_target(target, device=profile, shapes_given=tuple(parse_shapes(shapes)))
    findings = lint_model(model, wanted)
    failed = any(finding.severity == "error" for finding in findings)
    if as_json:
        print_json({"passed": not failed, "target": wanted.title, "findings": [asdict(item) for item in findings]})
    elif findings:
        OUT.print(findings_table([asdict(item) for item in findings], f"{model.name} for {wanted.title}"))
    else:
        OUT.print(f"{escape(str(model))}: nothing found for {wanted.title}", soft_wrap=True, highlight=False)
    ctx.exit(3 if failed else 0)


def findings_table(findings: list[dict[str, str]], title: str) -> Table:
    """Return the findings as a table; equal findings on many nodes share a row."""
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for column in ("severity", "rule", "where", "why", "fix"):
        table.add_column(column, overflow="fold")
    grouped: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for finding in findings:
        grouped.setdefault((finding["severity"], finding["rule"], finding["fix"]), []).append(finding)
    for (severity, rule, fix), group in grouped.items():
        first = group[0]
        where = first["module"] or first["node"] or "the model"
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        colour = "red" if severity == "error" else "yellow"
        table.add_row(f"[{colour}]{severity}[/]", rule, escape(f"{where}{more}"), escape(first["why"]), escape(fix))
    return table
