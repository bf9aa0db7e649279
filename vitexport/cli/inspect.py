"""``vitexport inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from vitexport.api import inspection as api
from vitexport.cli.screen import OUT, print_json

__all__ = ["inspect"]


@click.command()
@click.argument("target", metavar="FILE|BUNDLE", type=click.Path(path_type=Path))
@click.option("--ranges", is_flag=True, help="Show a bundle's activation ranges, worst layer first.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write an engine's audit as a page.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(target: Path, ranges: bool, html: Path | None, as_json: bool) -> None:
    """Show what an ONNX file, a bundle or an engine holds: identity, inputs, outputs, preprocessing, operators.

    Example: vitexport inspect out/quickstart/models/int8.onnx
    """
    found = api.inspect(target, ranges=ranges)
    if html is not None:
        click.echo(f"wrote {found.write_html(html)}", err=True)
    content = found.to_dict()
    if as_json:
        print_json(content)
        return
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            OUT.print(_table(key, value))
        elif isinstance(value, dict):
            OUT.print(_table(key, [{"name": name, "value": item} for name, item in value.items()]))
        else:
            OUT.print(f"[bold]{key}[/]: {escape(str(value))}", soft_wrap=True, highlight=False)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(row.get(column, ""))) for column in columns))
    return table
