"""``vitexport models``."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.markup import escape
from rich.table import Table

from vitexport.cli.screen import OUT, print_json
from vitexport.host.sources.families import FAMILIES

__all__ = ["models"]

_OTHERS = (
    "Any other timm or Hugging Face model whose forward maps pixel_values to tensors is attempted generically, and the "
    "export says so. Sources: a hub id (owner/name), a Hugging Face directory, timm:NAME, timm:local-dir:PATH, or "
    "timm:NAME@WEIGHTS."
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def models(as_json: bool) -> None:
    """List the supported model families, where they come from, and what each gives.

    Example: vitexport models
    """
    if as_json:
        print_json({"families": [asdict(family) for family in FAMILIES], "others": _OTHERS})
        return
    table = Table()
    for heading in ("family", "model", "Hugging Face", "timm", "gives", "for example"):
        table.add_column(heading, overflow="fold")
    for family in FAMILIES:
        table.add_row(
            family.name,
            escape(family.title),
            ", ".join(family.huggingface) or "-",
            "yes" if family.timm else "-",
            escape(family.outputs),
            escape(family.example),
        )
    OUT.print(table)
    OUT.print(_OTHERS, soft_wrap=True, highlight=False)
