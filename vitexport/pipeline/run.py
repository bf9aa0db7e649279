"""Recipe to bundle: the stages in order, each skipped when nothing it depends on has changed. The only orchestrator."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vitexport.bundle.bundle import Artifact, Bundle, Kind
from vitexport.bundle.layout import (
    ATTEMPTS,
    DISAGREEMENTS,
    ERRORS,
    PREPROCESSING,
    REFERENCE,
    analysis_path,
    recipe_path,
    recording_name,
)
from vitexport.errors import CalibrationError
from vitexport.files import StageResult, write_atomic
from vitexport.inputs.images import list_images
from vitexport.inputs.labels import find_targets
from vitexport.pipeline.fallback import Candidate, candidates, settle
from vitexport.pipeline.stages import (
    VerificationImages,
    compare_preprocessing,
    keep_disagreements,
    locate_errors,
    measure_latency,
    record_reference,
    record_variant,
)
from vitexport.pipeline.step import Step, StepEvent, images_fingerprint, settings_of, source_fingerprint
from vitexport.pipeline.workspace import OnEvent, StaleError, Workspace
from vitexport.recipe.settings import QuantizeSettings, Recipe
from vitexport.report import write_report
from vitexport.verify.judge import judge
from vitexport.verify.result import VerificationResult

if TYPE_CHECKING:
    from vitexport.host.sources import LoadedModel

__all__ = ["STAGES", "RunResult", "plan", "run"]

STAGES = ("load", "export", "simplify", "quantize", "verify", "benchmark", "report")

_TORCH = ("torch", "transformers", "timm")
_ONNX = ("onnx", "onnx-ir", "onnxruntime")


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
    """Return the stages that ``recipe`` asks for, up to and including ``until``."""
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
    return _Run(recipe, work).execute(plan(recipe, until))


class _Run:
    """One run of a recipe: its stages, its images, and the PyTorch model if a stage needs it."""

    def __init__(self, recipe: Recipe, work: Workspace) -> None:
        self.recipe = recipe
        self.work = work

    def execute(self, stages: tuple[str, ...]) -> RunResult:
        # Everything the user named is checked before the first expensive stage.
        _ = self.verification
        if "quantize" in stages:
            _ = self.calibration
        if not self.work.dry_run:
            self._prune()
        try:
            for stage in stages:
                getattr(self, f"_{stage}")()
        except StaleError as stale:
            pending = stages[stages.index(stale.stage) :]
            return RunResult(self.work.bundle, None, pending, tuple(self.work.skipped))
        bundle = self.work.current()
        verification = judge(bundle, self.recipe) if "verify" in stages else None
        return RunResult(bundle, verification, tuple(self.work.executed), tuple(self.work.skipped))

    @cached_property
    def verification(self) -> VerificationImages:
        images = self.recipe.data.verification
        paths = list_images(images.images, limit=images.limit)
        names = tuple(path.relative_to(images.images).as_posix() for path in paths)
        return VerificationImages(paths, names, find_targets(images.images, paths, images.labels))

    @cached_property
    def calibration(self) -> tuple[Path, ...]:
        images = self.recipe.data.calibration
        if images is None:
            raise CalibrationError(
                "Expected calibration images for quantization, found no `data.calibration` in the recipe.",
                "Name a folder of real images (128 are good), or set `quantize: null` for a float bundle.",
            )
        return list_images(images.images, limit=images.limit)

    @cached_property
    def loaded(self) -> LoadedModel:
        from vitexport.host.sources import load_model

        return load_model(self.recipe.model, image_size=self.recipe.export.image_size)

    @cached_property
    def model_key(self) -> str:
        return source_fingerprint(self.recipe.model)

    @cached_property
    def images_key(self) -> str:
        images = self.verification
        return images_fingerprint(self.recipe.data.verification.images, images.paths) + f":{images.targets}"

    # Stages, in order

    def _load(self) -> None:
        recipe = self.recipe
        settings = settings_of(
            name=recipe.name,
            image_size=recipe.export.image_size,
            batch_size=recipe.verify.batch_size,
            replay_images=recipe.verify.replay_images,
        )
        name, keys = recording_name(REFERENCE), (self.model_key, self.images_key)
        recorded = self.work.ensure(Step("load", name, "recording", settings, keys, _TORCH, self._record_reference))

        def compare() -> StageResult:
            return compare_preprocessing(self.loaded, recipe.model, self.verification, self.work.current())

        keys = (self.model_key, recorded.companions[0].sha256)
        self.work.ensure(Step("load", PREPROCESSING, "analysis", settings, keys, (*_TORCH, "Pillow"), compare))
        if not self.work.dry_run:  # a changed recipe is always written, and by itself redoes nothing
            self.work.ensure(Step("recipe", "recipe", "recipe", self._resolved_recipe(), (), (), self._write_recipe))

    def _record_reference(self) -> StageResult:
        loaded = self.loaded
        result = record_reference(loaded, self.verification, self.recipe.verify, self.work.root)
        self.work.bundle = Bundle(
            self.work.root,
            name=self.recipe.name,
            metadata=loaded.metadata,
            artifacts=self.work.bundle.artifacts if self.work.bundle else (),
        )
        return result

    def _resolved_recipe(self) -> dict[str, object]:
        return self.recipe.model_dump(mode="json")

    def _write_recipe(self) -> StageResult:
        path = recipe_path(self.work.root)
        write_atomic(path, yaml.safe_dump(self._resolved_recipe(), sort_keys=False))
        return StageResult(path, "")

    def _export(self) -> None:
        def export() -> StageResult:
            from vitexport.host.export import export_onnx

            return export_onnx(self.loaded, self.recipe.export, self.work.model_path("onnx"))

        settings = settings_of(self.recipe.export)
        self.work.ensure(Step("export", "onnx", "onnx", settings, (self.model_key,), (*_TORCH, *_ONNX), export))

    def _simplify(self) -> None:
        def simplify() -> StageResult:
            from vitexport.host.simplify import simplify_onnx

            return simplify_onnx(self.work.model_of("onnx"), self.recipe.simplify, self.work.model_path("simplified"))

        self.work.ensure(self._transform("simplify", "simplified", "simplified", "onnx", ("onnxsim", *_ONNX), simplify))

    def _quantize(self) -> None:
        settings = self.recipe.quantize
        assert settings is not None  # plan() leaves the stage out otherwise
        if self.recipe.gates.on_failure == "fail":
            self._make_candidate(settings)
            return
        choices = candidates(settings, self.recipe.gates)
        step_settings = {key: settings_of(getattr(self.recipe, key)) for key in ("quantize", "gates", "verify")}
        step_settings["benchmark"] = settings_of(self.recipe.benchmark)
        parents = (self.work.current().artifact("simplified").file.sha256, *self._calibration_keys(), self.model_key)
        settled = self.work.ensure(
            Step("quantize", ATTEMPTS, "analysis", step_settings, parents, _ONNX, partial(self._settle, choices))
        )
        self._make_candidate(choices[settled.details["kept"]].settings)

    def _settle(self, choices: Sequence[Candidate]) -> StageResult:
        """Try candidates until one meets the gates, and write down what happened."""

        def attempt(choice: Candidate) -> VerificationResult:
            self.work.on_event(StepEvent("quantize", "running", f"trying {choice.name}"))
            self._make_candidate(choice.settings)
            self._verify()
            self._benchmark()
            return judge(self.work.current(), self.recipe)

        done = settle(choices, attempt)
        kept = next(entry for entry in done if entry.kept)
        path = analysis_path(self.work.root, ATTEMPTS)
        write_atomic(path, json.dumps({"attempts": [asdict(entry) for entry in done]}, indent=2) + "\n")
        chosen = choices[kept.index].settings
        return StageResult(path, "", (), {"kept": kept.index, "precision": chosen.precision if chosen else ""})

    def _make_candidate(self, settings: QuantizeSettings | None) -> None:
        """Make the quantized variant, or none, and drop those of other precisions."""
        if settings is None:
            self.work.keep_models({"onnx", "simplified"})
            return
        name = settings.precision

        def quantize() -> StageResult:
            from vitexport.host.quantize import quantize_onnx

            return quantize_onnx(
                self.work.model_of("simplified"),
                self.calibration,
                settings,
                self.work.model_path(name),
                verification=self.verification.paths,
                progress=self.work.advance("quantize"),
            )

        parents = (self.work.current().artifact("simplified").file.sha256, *self._calibration_keys())
        self.work.ensure(Step("quantize", name, "quantized", settings_of(settings), parents, _ONNX, quantize))
        self.work.keep_models({"onnx", "simplified", name})

    def _calibration_keys(self) -> tuple[str, str]:
        calibration = self.recipe.data.calibration
        assert calibration is not None  # self.calibration has checked it
        return images_fingerprint(calibration.images, self.calibration), self.images_key

    def _transform(
        self,
        stage: str,
        output: str,
        kind: Kind,
        source: str,
        tools: tuple[str, ...],
        make_it: Callable[[], StageResult],
    ) -> Step:
        settings = settings_of(getattr(self.recipe, stage))
        parent = self.work.current().artifact(source).file.sha256
        return Step(stage, output, kind, settings, (parent,), tools, make_it)

    def _verify(self) -> None:
        for artifact in self.work.current().models:
            self.work.ensure(
                Step(
                    "verify",
                    recording_name(artifact.name),
                    "recording",
                    {"batch_size": self.recipe.verify.batch_size},
                    (artifact.file.sha256, self.images_key),
                    ("onnxruntime",),
                    partial(self._record_variant, artifact),
                )
            )

    def _record_variant(self, artifact: Artifact) -> StageResult:
        return record_variant(self.work.current(), artifact, self.verification, self.recipe.verify)

    def _benchmark(self) -> None:
        variants = self.work.current().models
        parents = (self.model_key, *(artifact.file.sha256 for artifact in variants))
        settings = settings_of(self.recipe.benchmark)
        tools = (*_TORCH, "onnxruntime")
        self.work.ensure(Step("benchmark", "benchmark", "benchmark", settings, parents, tools, self._measure))

    def _measure(self) -> StageResult:
        return measure_latency(self.work.current(), self.loaded, self.recipe.benchmark)

    def _report(self) -> None:
        models = tuple(artifact.file.sha256 for artifact in self.work.current().models)
        replayed = (models + (self.images_key,), {"replay_images": self.recipe.verify.replay_images})
        for name, tools, make_it in (
            (ERRORS, _ONNX, lambda: locate_errors(self.work.current())),
            (DISAGREEMENTS, (), lambda: keep_disagreements(self.work.current(), self.verification)),
        ):
            self.work.ensure(Step("report", name, "analysis", replayed[1], replayed[0], tools, make_it))
        bundle = self.work.current()
        parents = tuple(artifact.file.sha256 for artifact in bundle.artifacts if artifact.kind != "report")
        settings = settings_of(self.recipe.gates)
        self.work.ensure(
            Step("report", "report", "report", settings, parents, ("Jinja2", "matplotlib"), self._write_report)
        )

    def _write_report(self) -> StageResult:
        bundle = self.work.current()
        path, *companions = write_report(bundle, judge(bundle, self.recipe), self.recipe)
        return StageResult(path, "", tuple(companions))

    def _prune(self) -> None:
        """Drop what an earlier recipe made here and this one does not."""
        if self.work.bundle is None:
            return
        wanted = {"onnx", "simplified", self.recipe.quantize.precision if self.recipe.quantize else ""}
        attempts = self.work.bundle.find(ATTEMPTS)
        if attempts is not None and self.recipe.gates.on_failure == "fallback" and self.recipe.quantize is not None:
            wanted.add(attempts.details["precision"])
        elif attempts is not None:
            self.work.drop({ATTEMPTS})
        self.work.keep_models(wanted)
