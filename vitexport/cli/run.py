"""``vitexport run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from vitexport.api.run import plan_run, resolve_recipe
from vitexport.api.run import run as run_recipe
from vitexport.cli.label_options import label_options
from vitexport.cli.screen import finish, print_json, suggest_bisect
from vitexport.errors import RecipeError
from vitexport.pipeline.recipe_run import STAGES

__all__ = ["run"]


@click.command()
@click.argument("recipe", metavar="RECIPE|SOURCE")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Bundle directory."
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="Verification images: of a SOURCE, or instead of a recipe's."
)
@label_options
@click.option("--calibration", type=click.Path(path_type=Path), help="Calibration images, likewise.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting: quantize.preset=fast."
)
@click.option("--until", type=click.Choice(list(STAGES)), help="Stop after this stage.")
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
    class_names: Path | None,
    file_column: str | None,
    label_column: str | None,
    overrides: tuple[str, ...],
    until: str | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Carry out a recipe, or the default recipe for a model SOURCE, and print the verdict.

    Example: vitexport run recipes/quickstart.yaml -o out/quickstart
    """
    named: dict[str, Any] = {"images": images, "labels": labels, "calibration": calibration}
    named |= {"class_names": class_names, "file_column": file_column, "label_column": label_column}
    named["recipe" if recipe.endswith((".yaml", ".yml")) else "source"] = recipe
    resolved = resolve_recipe(**named, settings=_settings(overrides))
    if dry_run:
        executed, skipped = plan_run(resolved, output, until=until, force=force)
        if as_json:
            print_json({"would_run": list(executed), "current": list(skipped)})
        click.echo(f"would run: {_join(executed)}; current: {_join(skipped)}", err=True)
        return
    done = run_recipe(resolved, output, until=until, force=force, progress=True)
    if done.executed:
        current = f"; {_join(done.skipped)} current" if done.skipped else ""
        click.echo(f"ran {_join(done.executed)}{current}", err=True)
    else:
        click.echo("nothing to do: every stage is current", err=True)
    if done.verification is not None:
        said = {key: value for key, value in done.to_dict().items() if key != "bundle"} if as_json else None
        code = finish(done.verification, f"{resolved.name} -> {output}", document=said, notes=done.remarks)
        suggest_bisect(done.verification, output)
        for number, line in enumerate(done.advice, 1):
            click.echo(f"try {number}: {line}", err=True)
        report = output / "report.html"
        if report.is_file():
            click.echo(f"report: {report}", err=True)
        ctx.exit(code)
    if as_json:
        print_json(done.to_dict())
    for line in done.remarks:
        click.echo(f"note: {line}", err=True)


def _join(stages: tuple[str, ...]) -> str:
    return ", ".join(stages) or "nothing"


def _settings(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Read ``--set a.b=value`` options; a value is read as YAML."""
    found: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise RecipeError(f"Expected --set KEY=VALUE, found '{override}'.", "Example: --set quantize.preset=fast")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"The value of --set {key} is not valid YAML: {error}", "Quote it.") from error
    return found
