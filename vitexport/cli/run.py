"""``vitexport run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from vitexport.cli.screen import finish, stage_progress, suggest_bisect
from vitexport.errors import RecipeError
from vitexport.pipeline.run import STAGES, plan
from vitexport.pipeline.run import run as run_recipe
from vitexport.recipe.settings import Recipe, load_recipe, parse_recipe
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
        resolved = _recipe_for(recipe, images, labels, calibration)
    resolved = _override(resolved, overrides)
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
    if result.ladder is not None:
        notes = remarks(result.ladder, resolved)
        code = finish(result.ladder, f"{resolved.name} -> {output}", as_json=as_json, notes=notes)
        suggest_bisect(result.ladder, output)
        report = output / "report.html"
        if report.is_file():
            click.echo(f"report: {report}", err=True)
        ctx.exit(code)


def _recipe_for(source: str, images: Path | None, labels: Path | None, calibration: Path | None) -> Recipe:
    """Return the default recipe for a model source."""
    if images is None:
        raise RecipeError(
            f"Expected a recipe (.yaml) or a model source with images, found '{source}' alone.",
            "Add --images DIR (to verify on) and --calibration DIR (to quantize with), or write a recipe.",
        )
    local = Path(source.removeprefix("timm:local-dir:"))
    prefix = "timm:local-dir:" if source.startswith("timm:local-dir:") else ""
    content: dict[str, Any] = {
        "name": local.name or source,
        "model": {"source": f"{prefix}{local.resolve()}" if local.exists() else source},
        "data": {
            "verification": {"images": str(images.resolve()), "labels": str(labels.resolve()) if labels else None},
            "calibration": {"images": str(calibration.resolve())} if calibration else None,
        },
    }
    if calibration is None:
        content["quantize"] = None
    return parse_recipe(content, where="command line")


def _override(recipe: Recipe, overrides: tuple[str, ...]) -> Recipe:
    """Apply ``--set a.b=value``; the value is read as YAML."""
    if not overrides:
        return recipe
    content = recipe.model_dump(mode="json")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise RecipeError(f"Expected --set KEY=VALUE, found '{override}'.", "Example: --set quantize.preset=fast")
        *parents, last = key.split(".")
        place: Any = content
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
            if not isinstance(place, dict):
                raise RecipeError(f"'{key}' is not a setting: '{parent}' holds no settings.", "See docs/recipes.md.")
        place[last] = yaml.safe_load(value)
    return parse_recipe(content, where="--set")
