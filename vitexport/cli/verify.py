"""``vitexport verify``."""

from __future__ import annotations

from pathlib import Path

import click

from vitexport.api import checks as api
from vitexport.cli.screen import finish, suggest_bisect
from vitexport.runtimes import available_runtimes

__all__ = ["verify"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runtime", type=click.Choice(available_runtimes()), help="Open every model with this runtime.")
@click.option(
    "--engine",
    type=click.Path(path_type=Path),
    help="Check this TensorRT engine, built from a model of the bundle, instead of the models themselves.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def verify(ctx: click.Context, bundle: Path, runtime: str | None, engine: Path | None, as_json: bool) -> None:
    """Run a bundle's models here and compare with PyTorch's recorded answers; exit 3 unless all ran and agree.

    Example: vitexport verify out/quickstart
    """
    result = api.verify(bundle, engine=engine, runtime=runtime)
    what = bundle.name if engine is None else engine.name
    code = finish(result, f"{what} replayed on this machine", document=result.to_dict() if as_json else None)
    suggest_bisect(result, bundle)
    ctx.exit(code)
