"""Recipe to bundle: the stages in order, each skipped when nothing it depends on has changed. The only orchestrator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitexport.bundle.bundle import Bundle
from vitexport.errors import RecipeError
from vitexport.pipeline.materials import Materials
from vitexport.pipeline.recipe_run import STAGES, RecipeRun
from vitexport.pipeline.workspace import OnEvent, StaleError, Workspace
from vitexport.recipe.settings import Recipe
from vitexport.verification.judge import judge
from vitexport.verification.result import VerificationResult

__all__ = ["RunResult", "plan", "run"]


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        bundle: The bundle as it is now; None after a dry run where there is none yet.
        verification: The verdict; None when the run stopped before verification.
        executed: Stages that did something, in order.
        skipped: Stages whose result was still current.
    """

    bundle: Bundle | None
    verification: VerificationResult | None
    executed: tuple[str, ...]
    skipped: tuple[str, ...]


def plan(recipe: Recipe, until: str | None = None) -> tuple[str, ...]:
    """Return the stages that ``recipe`` asks for, up to and including ``until``.

    Raises:
        RecipeError: There is no stage of that name.
    """
    if until is not None and until not in STAGES:
        raise RecipeError(f"Expected a stage of {', '.join(STAGES)}, found '{until}'.", "Stop after one of these.")
    stages = [stage for stage in STAGES if stage != "quantize" or recipe.quantize is not None]
    return tuple(stages[: stages.index(until) + 1] if until in stages else stages)


def run(
    recipe: Recipe,
    root: Path,
    *,
    until: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    on_event: OnEvent = lambda _: None,
) -> RunResult:
    """Carry out a recipe; what is current in ``root`` is kept.

    Args:
        recipe: With absolute paths, as :func:`vitexport.recipe.settings.load_recipe` returns it.
        root: Bundle directory, created when absent.
        until: Stop after this stage.
        force: Redo every stage.
        dry_run: Only find out what would be done; a stage after the first stale one counts as to be done, although it
            is skipped if the stale one turns out to make the same file again.
        on_event: Called as stages begin, advance and end.

    Raises:
        VitexportError: A stage could not do what was asked; what earlier stages made stays and is reused next time.
    """
    work = Workspace(root, force=force, dry_run=dry_run, on_event=on_event)
    stages = plan(recipe, until)
    with Materials(recipe) as given:
        # Everything the user named is checked before the first expensive stage.
        _ = given.images_key
        running = RecipeRun(given, work)
        if "quantize" in stages:
            running.check_images()
        if not dry_run:
            running.prune()
        try:
            for stage in stages:
                STAGES[stage](running)
        except StaleError as stale:
            return RunResult(work.bundle, None, stages[stages.index(stale.stage) :], tuple(work.skipped))
    bundle = work.current()
    verification = judge(bundle, recipe) if "verify" in stages else None
    return RunResult(bundle, verification, tuple(work.executed), tuple(work.skipped))
