"""``vitexport bisect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from vitexport.api import analysis as api
from vitexport.cli.screen import OUT, print_json

if TYPE_CHECKING:
    from vitexport.host.diagnose import BisectReport

__all__ = ["bisect"]

_SHOWN = 12


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", required=True, help="Variant to examine, e.g. int8.")
@click.option("--against", help="Variant that is right; the last float variant before it otherwise.")
@click.option("--images", type=click.IntRange(1), default=8, help="How many of the bundle's images to use.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bisect(bundle: Path, variant: str, against: str | None, images: int, as_json: bool) -> None:
    """Find the block and layer where a variant loses accuracy, by feeding every layer exact inputs.

    Example: vitexport bisect out/quickstart --variant int8
    """
    report = api.bisect(bundle, variant, against=against, images=images)
    if as_json:
        print_json(report.to_dict())
        return
    OUT.print(f"[bold]{escape(report.describe())}[/]")
    OUT.print(_layers(report))
    if report.blocks:
        OUT.print(_blocks(report))


def _layers(report: BisectReport) -> Table:
    table = Table(title=f"{report.candidate} against {report.reference}, {report.images} images", title_justify="left")
    table.add_column("layer", no_wrap=True)
    for heading in ("own error", "worst channel", "SQNR dB", "x its kind", "not finite"):
        table.add_column(heading, justify="right")
    blamed = [layer.tensor for layer in report.culprits]
    others = sorted((x for x in report.layers if x.tensor not in blamed), key=lambda layer: -layer.local)
    for layer in [*report.culprits, *others][:_SHOWN]:
        table.add_row(
            escape(layer.layer)
            if layer.role not in ("residual", "softmax", "context")
            else f"{layer.layer} {layer.role}",
            f"{layer.local:.2g}",
            f"{layer.peak:.2g}",
            f"{layer.sqnr_db:.1f}",
            f"{layer.score:.3g}",
            str(layer.not_finite or ""),
            style="bold red" if layer.tensor in blamed and report.finding in ("single", "overflow") else "",
        )
    return table


def _blocks(report: BisectReport) -> Table:
    table = Table(title="error by block", title_justify="left")
    table.add_column("block", no_wrap=True)
    table.add_column("added", justify="right")
    table.add_column("after it", justify="right")
    for block in report.blocks:
        table.add_row(escape(block.name), f"{block.local:.2g}", f"{block.accumulated:.2g}")
    return table
