"""A whole recipe, and its stages on single files: run, export, simplify, quantize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitexport.api.arguments import onnx_output
from vitexport.api.progress import Progress, shown
from vitexport.bundle.bundle import Bundle
from vitexport.errors import RecipeError
from vitexport.files import StageResult, StepEvent, as_path
from vitexport.inputs.images import list_images
from vitexport.pipeline.run import plan
from vitexport.pipeline.run import run as run_recipe
from vitexport.recipe.load import default_recipe, load_recipe, override_settings, validated
from vitexport.recipe.settings import (
    ExportSettings,
    ModelSettings,
    Precision,
    QuantizeSettings,
    Recipe,
    SimplifySettings,
    Target,
    Task,
)
from vitexport.tables import Table
from vitexport.verification.result import VerificationResult
from vitexport.verification.summary import budget_sentence, headline, remarks

if TYPE_CHECKING:
    import torch

    from vitexport.inputs.preprocess import PreprocessSpec

__all__ = ["FinishedRun", "export", "plan_run", "quantize", "resolve_recipe", "run", "simplify"]


class FinishedRun(Bundle):
    """A bundle as a run left it; everything a :class:`~vitexport.bundle.bundle.Bundle` has, and what the run found.

    Attributes:
        verification: The result; None when the run stopped before verification.
        executed: Stages that did something, in order.
        skipped: Stages whose result was still current.
        remarks: What a reader must know although nothing failed, one sentence each.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        verification: VerificationResult | None,
        executed: tuple[str, ...],
        skipped: tuple[str, ...],
        remarks: tuple[str, ...],
    ) -> None:
        super().__init__(bundle.root, name=bundle.name, metadata=bundle.metadata, artifacts=bundle.artifacts)
        self.verification = verification
        self.executed = executed
        self.skipped = skipped
        self.remarks = remarks

    @property
    def passed(self) -> bool | None:
        """Whether every variant, gate and check passed; None when the run stopped before verification."""
        return None if self.verification is None else self.verification.passed

    def to_dict(self) -> dict[str, Any]:
        """Return the result, what the run did, and what ``bundle.json`` holds."""
        found = {} if self.verification is None else self.verification.to_dict()
        did = {"executed": list(self.executed), "skipped": list(self.skipped), "remarks": list(self.remarks)}
        return {**found, **did, "bundle": super().to_dict()}

    def tables(self) -> tuple[Table, ...]:
        """Return the result's tables under its headline; those of the bundle where nothing was verified."""
        if self.verification is None:
            return super().tables()
        first, *others = self.verification.tables()
        return replace(first, title=headline(self.verification)), *others


def resolve_recipe(
    recipe: str | Path | Recipe | None = None,
    *,
    source: str | Path | None = None,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    calibration: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a validated recipe, with absolute paths; arguments as for :func:`run`.

    Raises:
        RecipeError: It cannot be read, names unknown settings, or both a recipe and a source are given.
    """
    named = {"images": images, "labels": labels, "calibration": calibration}
    if settings is not None and not (isinstance(settings, Mapping) and all(isinstance(key, str) for key in settings)):
        raise RecipeError(
            f"Expected settings by dotted name, found {settings!r}.", 'Write settings={"quantize.preset": "fast"}.'
        )
    if (recipe is None) == (source is None):
        raise RecipeError(
            "Expected a recipe or a model source, found " + ("neither." if recipe is None else "both."),
            "Pass a recipe (a path or a Recipe), or source=... with images=...",
        )
    if source is not None:
        paths = {key: None if value is None else as_path(value, key) for key, value in named.items()}
        found = default_recipe(str(source), paths["images"], paths["labels"], paths["calibration"])
    elif isinstance(recipe, Recipe):
        found = recipe
    else:
        assert recipe is not None
        found = load_recipe(as_path(recipe, "a recipe"))
    given = [key for key, value in named.items() if value is not None and source is None]
    if given:
        raise RecipeError(
            f"Expected {', '.join(given)} in the recipe itself, found it beside one.",
            "Write data.verification and data.calibration into the recipe, or pass settings={'data....': ...}.",
        )
    return override_settings(found, settings or {})


def run(
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    *,
    source: str | Path | None = None,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    calibration: str | Path | None = None,
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
        images: Folder of verification images, for a ``source``.
        labels: JSON file with their classes, for a ``source``.
        calibration: Folder of calibration images, for a ``source``; None makes a float bundle.
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
        recipe, source=source, images=images, labels=labels, calibration=calibration, settings=settings
    )
    with shown(progress, plan(resolved, until)) as show:
        done = run_recipe(resolved, as_path(out, "a bundle directory"), until=until, force=force, on_event=show)
    assert done.bundle is not None  # only a dry run can leave none
    notes = () if done.verification is None else remarks(done.verification, resolved)
    return FinishedRun(
        done.bundle, verification=done.verification, executed=done.executed, skipped=done.skipped, remarks=notes
    )


def plan_run(
    recipe: Recipe, out: str | Path, *, until: str | None = None, force: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the stages that :func:`run` would carry out, and those whose result is current; nothing is written."""
    done = run_recipe(recipe, as_path(out, "a bundle directory"), until=until, force=force, dry_run=True)
    return done.executed, done.skipped


def export(
    model: str | PathLike[str] | torch.nn.Module,
    out: str | Path,
    *,
    task: Task | None = None,
    image_size: tuple[int, int] | None = None,
    batch: Literal["dynamic"] | int = "dynamic",
    input: Literal["float32", "uint8"] = "float32",  # noqa: A002  # the recipe's name for it
    opset: int = 20,
    revision: str | None = None,
    allow_pickle: bool = False,
    preprocess: PreprocessSpec | Mapping[str, Any] | object | None = None,
    class_names: Sequence[str] = (),
    progress: Progress = False,
) -> StageResult:
    """Export a Vision Transformer to ONNX, and compare the file with the model's own PyTorch outputs.

    Example::

        vx.export("recipes/quickstart/model", "exported.onnx")     # or a hub id: "google/vit-base-patch16-224"
        vx.export(module, "mine.onnx", preprocess=preprocess, class_names=["cat", "dog"])     # or a live module

    Args:
        model: Hub id, Hugging Face directory, ``timm:NAME``, ``timm:NAME@FILE``, ``timm:local-dir:PATH``, or a live
            module; that one is copied, not changed.
        out: The ONNX file to write; it carries preprocessing, class names and history as metadata.
        task: ``classify`` or ``features``; None takes what the checkpoint was saved for.
        image_size: (height, width) in pixels; None takes the checkpoint's own.
        batch: ``dynamic`` or a fixed batch size.
        input: ``float32`` ``[N, 3, H, W]`` planes, or ``uint8`` ``[N, H, W, 3]`` pixels normalized inside the graph.
        opset: ONNX opset, 17 to 23.
        revision: Hub branch, tag or commit.
        allow_pickle: Accept a pickle checkpoint (still loaded with ``weights_only=True``).
        preprocess: For a live module: a PreprocessSpec, the same as a mapping, or a transformers image processor.
        class_names: For a live module: names by output index.
        progress: True shows a bar; a function gets every event.

    Returns:
        The file; ``details["max_rel_difference"]`` is the largest difference from PyTorch on synthetic images.

    Raises:
        ModelSourceError: The checkpoint cannot be loaded.
        ExportError: It cannot be exported, or the file does not answer as PyTorch does.
        RecipeError: An argument does not fit.
        MissingDependencyError: torch or the checkpoint's library is not installed.
    """
    from vitexport.host.export import export_onnx
    from vitexport.host.export_check import compare_with_pytorch
    from vitexport.host.sources import load_model

    path = onnx_output(out)
    asked = {"batch": batch, "opset": opset, "image_size": image_size, "input": input}
    settings = validated(ExportSettings, asked, where="export")
    from_checkpoint = isinstance(model, str | PathLike)
    if from_checkpoint and (preprocess is not None or len(class_names)):
        raise RecipeError(
            "Expected preprocess and class_names for a live module only, found them beside a checkpoint.",
            "Leave them out: a checkpoint brings its own.",
        )
    with shown(progress, ("load", "export", "compare")) as show:
        show(StepEvent("load", "running", model if isinstance(model, str) else type(model).__name__))
        if isinstance(model, str | PathLike):
            named = {"source": str(model), "task": task, "revision": revision, "allow_pickle": allow_pickle}
            loaded = load_model(validated(ModelSettings, named, where="model"), image_size=image_size)
        else:
            from vitexport.host.sources.live import wrap_module

            loaded = wrap_module(model, preprocess, class_names, task=task, image_size=image_size)
        show(StepEvent("load", "done"))
        show(StepEvent("export", "running", str(out)))
        result = export_onnx(loaded, settings, path)
        show(StepEvent("export", "done"))
        show(StepEvent("compare", "running", "with PyTorch's own outputs"))
        difference = compare_with_pytorch(loaded, result.path)
        show(StepEvent("compare", "done"))
    return replace(result, details={**result.details, "max_rel_difference": difference})


def simplify(model: str | PathLike[str], out: str | Path, *, onnxsim: bool = True) -> StageResult:
    """Simplify an exported ONNX file to the canonical ViT graph, outputs unchanged.

    Example::

        vx.simplify("vit.onnx", "vit-simplified.onnx")

    Args:
        model: ONNX file.
        out: The ONNX file to write.
        onnxsim: Run onnxsim before the canonical passes.

    Raises:
        SimplifyError: A pass failed, or the outputs changed.
    """
    from vitexport.host.simplify import simplify_onnx

    return simplify_onnx(as_path(model, "an ONNX file"), SimplifySettings(onnxsim=onnxsim), onnx_output(out))


def quantize(
    model: str | PathLike[str],
    images: str | PathLike[str],
    out: str | Path,
    *,
    target: Target = "ort-x86",
    precision: Precision = "int8",
    attention: Literal["float", "int8"] = "float",
    preset: Literal["default", "fast"] = "default",
    max_top1_drop: float | None = None,
    min_agreement: float | None = None,
    min_sqnr_db: float | None = None,
    limit: int | None = None,
    progress: Progress = False,
) -> StageResult:
    """Quantize an exported ONNX file with calibration images.

    Example::

        vx.quantize("vit.onnx", images="calib/calibration", target="tensorrt", out="int8.onnx", preset="fast")

    Args:
        model: ONNX file that carries its preprocessing, as :func:`export` writes it.
        images: Folder of calibration images, at least 16; about 128 are good.
        out: The ONNX file to write; never the input.
        target: Runtime the Q/DQ form is made for: ``tensorrt``, ``ort-x86``, ``ort-arm64``, ``portable``.
        precision: ``int8``, ``fp8`` (E4M3), or ``fp16``, ``bf16`` for a 16-bit body only.
        attention: ``int8`` also quantizes the attention products.
        preset: ``fast`` skips every search.
        max_top1_drop: Budget in points of top-1: layers stay in float until it holds.
        min_agreement: Budget: top-1 agreement with float32, 0 to 1.
        min_sqnr_db: Budget: SQNR of the logits in dB.
        limit: Use at most so many images, spread over the folder.
        progress: True shows a bar; a function gets every event.

    Raises:
        CalibrationError: The images are too few, or show nothing.
        RecipeError: ``out`` is ``model``.
        QuantizeError: The model cannot be quantized as asked.
    """
    source, path = as_path(model, "an ONNX file"), onnx_output(out)
    if path.resolve() == source.resolve():
        raise RecipeError(f"'{out}' is also the input.", "Write to another file; the float model stays as it is.")
    from vitexport.host.quantize import quantize_onnx

    budget = {"max_top1_drop": max_top1_drop, "min_agreement": min_agreement, "min_sqnr_db": min_sqnr_db}
    settings = validated(
        QuantizeSettings,
        {
            "target": target,
            "precision": precision,
            "attention": attention,
            "preset": preset,
            "budget": budget if any(value is not None for value in budget.values()) else None,
        },
        where="quantize",
    )
    with shown(progress, ("quantize",)) as show:
        result = quantize_onnx(
            source,
            list_images(as_path(images, "a folder of images"), limit=limit),
            settings,
            path,
            progress=lambda message, fraction: show(StepEvent("quantize", "running", message, fraction)),
        )
        show(StepEvent("quantize", "done", str(out)))
    mixed = result.details.get("mixed_precision")
    return result if mixed is None else replace(result, details={**result.details, "budget": budget_sentence(mixed)})
