"""``vitexport models``."""

from __future__ import annotations

import click

from vitexport.api import machine as api
from vitexport.cli.screen import OUT, print_json, rich_table

__all__ = ["models"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def models(as_json: bool) -> None:
    """List the supported model families, where they come from, and what each gives.

    Example: vitexport models
    """
    found = api.models()
    if as_json:
        print_json(found.to_dict())
        return
    OUT.print(rich_table(found.tables()[0]))
    OUT.print(found.others, soft_wrap=True, highlight=False)
