"""``vitexport run``."""

from __future__ import annotations

from pathlib import Path

import click

from vitexport.cli.screen import finish, stage_progress, suggest_bisect
from vitexport.pipeline.run import STAGES, plan
from vitexport.pipeline.run import run as run_recipe
from vitexport.recipe.load import default_recipe, load_recipe, override_settings
from vitexport.verify.summary import remarks

__all__ = ["run"]


@click.command()
@click.argument("recipe", metavar="RECIPE|SOURCE")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Bundle directory."
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="Verification images, for a SOURCE instead of a recipe."
)
@click.option("--labels", type=click.Path(path_type=Path), help="Their classes (JSON), for a SOURCE.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Calibration images, for a SOURCE.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting: quantize.preset=fast."
)
@click.option("--until", type=click.Choice(STAGES), help="Stop after this stage.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--force", is_flag=True, help="Redo every stage.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def run(
    ctx: click.Context,
    recipe: str,
    output: Path,
    images: Path | None,
    labels: Path | None,
    calibration: Path | None,
    overrides: tuple[str, ...],
    until: str | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Carry out a recipe, or the default recipe for a model SOURCE, and print the verdict.

    Example: vitexport run recipes/quickstart.yaml -o out/quickstart
    """
    if recipe.endswith((".yaml", ".yml")):
        resolved = load_recipe(Path(recipe))
    else:
        resolved = default_recipe(recipe, images, labels, calibration)
    resolved = override_settings(resolved, overrides)
    stages = plan(resolved, until)
    with stage_progress(stages) as show:
        result = run_recipe(resolved, output, until=until, force=force, dry_run=dry_run, on_event=show)
    done = ", ".join(result.executed) or "nothing"
    if dry_run:
        click.echo(f"would run: {done}; current: {', '.join(result.skipped) or 'nothing'}", err=True)
        return
    if result.executed:
        click.echo(f"ran {done}" + (f"; {', '.join(result.skipped)} current" if result.skipped else ""), err=True)
    else:
        click.echo("nothing to do: every stage is current", err=True)
    if result.verification is not None:
        notes = remarks(result.verification, resolved)
        code = finish(result.verification, f"{resolved.name} -> {output}", as_json=as_json, notes=notes)
        suggest_bisect(result.verification, output)
        report = output / "report.html"
        if report.is_file():
            click.echo(f"report: {report}", err=True)
        ctx.exit(code)
