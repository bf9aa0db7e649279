"""A whole recipe: run it, or say what would be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from vitexport.api.progress import Progress, shown
from vitexport.bundle.bundle import Bundle
from vitexport.errors import RecipeError
from vitexport.extras import names_missing_extras
from vitexport.files import as_path
from vitexport.pipeline.run import plan
from vitexport.pipeline.run import run as run_recipe
from vitexport.recipe.load import GivenData, default_recipe, load_recipe, override_data, override_settings
from vitexport.recipe.settings import Recipe
from vitexport.tables import Table
from vitexport.verification.advice import advise_on
from vitexport.verification.quantized import told
from vitexport.verification.result import VerificationResult
from vitexport.verification.summary import headline, remarks

__all__ = ["FinishedRun", "plan_run", "resolve_recipe", "run"]


class FinishedRun(Bundle):
    """A bundle as a run left it; everything a :class:`~vitexport.bundle.bundle.Bundle` has, and what the run found.

    Attributes:
        verification: The result; None when the run stopped before verification.
        executed: Stages that did something, in order.
        skipped: Stages whose result was still current.
        remarks: What a reader must know although nothing failed, one sentence each.
        headline: The verdict in one sentence; empty when the run stopped before verification.
        advice: What to try after a rejection, the most promising first.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        verification: VerificationResult | None,
        executed: tuple[str, ...],
        skipped: tuple[str, ...],
        remarks: tuple[str, ...],
        headline: str,
        advice: tuple[str, ...],
    ) -> None:
        super().__init__(bundle.root, name=bundle.name, metadata=bundle.metadata, artifacts=bundle.artifacts)
        self.verification = verification
        self.executed = executed
        self.skipped = skipped
        self.remarks = remarks
        self.headline = headline
        self.advice = advice

    @property
    def passed(self) -> bool | None:
        """Whether every variant, gate and check passed; None when the run stopped before verification."""
        return None if self.verification is None else self.verification.passed

    def to_dict(self) -> dict[str, Any]:
        """Return the result, what the run did, and what ``bundle.json`` holds."""
        found = {} if self.verification is None else self.verification.to_dict()
        said = {"headline": self.headline, "remarks": list(self.remarks), "advice": list(self.advice)}
        did = {"executed": list(self.executed), "skipped": list(self.skipped)}
        return {**found, **said, **did, "bundle": super().to_dict()}

    def tables(self) -> tuple[Table, ...]:
        """Return the result's tables under its headline; those of the bundle where nothing was verified."""
        if self.verification is None:
            return super().tables()
        first, *others = self.verification.tables()
        return replace(first, title=self.headline), *others


def resolve_recipe(
    recipe: str | Path | Recipe | None = None,
    *,
    source: str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None,
    labels: str | PathLike[str] | None = None,
    calibration: str | PathLike[str] | None = None,
    class_names: str | PathLike[str] | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a validated recipe, with absolute paths; arguments as for :func:`run`.

    Raises:
        RecipeError: It cannot be read, names unknown settings, or both a recipe and a source are given.
    """
    named = {"images": images, "labels": labels, "calibration": calibration, "class_names": class_names}
    if settings is not None and not (isinstance(settings, Mapping) and all(isinstance(key, str) for key in settings)):
        raise RecipeError(
            f"Expected settings by dotted name, found {settings!r}.", 'Write settings={"quantize.preset": "fast"}.'
        )
    if (recipe is None) == (source is None):
        raise RecipeError(
            "Expected a recipe or a model source, found " + ("neither." if recipe is None else "both."),
            "Pass a recipe (a path or a Recipe), or source=... with images=...",
        )
    paths = {key: None if value is None else as_path(value, key) for key, value in named.items()}
    given = GivenData(**paths, file_column=file_column, label_column=label_column)
    if source is not None:
        found = default_recipe(str(source), given)
    else:
        assert recipe is not None
        read = recipe if isinstance(recipe, Recipe) else load_recipe(as_path(recipe, "a recipe"))
        found = override_data(read, given)
    found = override_settings(found, settings or {})
    if calibration is not None and found.quantize is None:
        raise RecipeError(
            "Expected a recipe that quantizes, as calibration images are given; found `quantize: null`.",
            "Leave the calibration images out, or ask for a quantization, e.g. --set quantize.precision=int8.",
        )
    return found


@names_missing_extras("Running a recipe")
def run(
    recipe: str | Path | Recipe | None = None,
    out: str | PathLike[str] | None = None,
    *,
    source: str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None,
    labels: str | PathLike[str] | None = None,
    calibration: str | PathLike[str] | None = None,
    class_names: str | PathLike[str] | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    settings: Mapping[str, Any] | None = None,
    until: str | None = None,
    force: bool = False,
    progress: Progress = False,
) -> FinishedRun:
    """Carry out a recipe: export, simplify, quantize, verify, benchmark, report. What is current in ``out`` is kept.

    Example::

        bundle = vx.run("recipes/quickstart.yaml", "out/new", until="simplify")
        print(bundle)

    Args:
        recipe: Path of a YAML file, or a Recipe; or leave it out and name a ``source``.
        out: Bundle directory, created when absent; always needed.
        source: Model source for the default recipe: hub id, directory, ``timm:NAME``.
        images: Folder of verification images: those of a ``source``, or in the place of a recipe's.
        labels: File with their labels (CSV, TSV, JSON, JSON Lines), likewise; None looks beside the images, then for
            class folders; ``"none"`` for images without labels.
        calibration: Folder of calibration images, likewise. A ``source`` needs some, or
            ``settings={"quantize": None}`` for a float32 bundle.
        class_names: File with the class names in the order of the outputs, for a model that has none of its own.
        file_column: Column of the file names in a table of labels; None takes a usual name.
        label_column: Column of the labels.
        settings: Overrides by dotted name, e.g. ``{"quantize.preset": "fast"}``.
        until: Stop after this stage.
        force: Redo every stage.
        progress: True shows a bar; a function gets every event.

    Returns:
        The bundle, with its verification result. A model that does not match is a result, not an exception.

    Raises:
        RecipeError: The recipe is wrong, or there is no ``out``.
        VitexportError: A stage could not do what was asked; what earlier stages made stays and is reused next time.
    """
    if out is None:
        raise RecipeError("Expected a directory for the bundle, found none.", "Pass out=...")
    resolved = resolve_recipe(
        recipe,
        source=source,
        images=images,
        labels=labels,
        calibration=calibration,
        class_names=class_names,
        file_column=file_column,
        label_column=label_column,
        settings=settings,
    )
    with shown(progress, plan(resolved, until)) as show:
        done = run_recipe(resolved, as_path(out, "a bundle directory"), until=until, force=force, on_event=show)
    assert done.bundle is not None  # only a dry run can leave none
    verdict, told_of = done.verification, tuple(_quantized(done.bundle))
    return FinishedRun(
        done.bundle,
        verification=verdict,
        executed=done.executed,
        skipped=done.skipped,
        remarks=told_of if verdict is None else (*remarks(verdict, resolved), *told_of),
        headline="" if verdict is None else headline(verdict, resolved),
        advice=() if verdict is None else advise_on(done.bundle, verdict, resolved),
    )


def _quantized(bundle: Bundle) -> Iterator[str]:
    """Yield what the quantized models say of themselves."""
    for artifact in bundle.models:
        for about, sentence in told(artifact.details).items():
            yield f"{artifact.name}, {about.replace('_', ' ')}: {sentence}."


def plan_run(
    recipe: Recipe, out: str | PathLike[str], *, until: str | None = None, force: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the stages that :func:`run` would carry out, and those whose result is current; nothing is written."""
    done = run_recipe(recipe, as_path(out, "a bundle directory"), until=until, force=force, dry_run=True)
    return done.executed, done.skipped
