"""The stages of a run, in order: what each depends on, and what it makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import yaml

from vitexport.bundle.bundle import Artifact
from vitexport.bundle.layout import (
    ATTEMPTS,
    BENCHMARK,
    DISAGREEMENTS,
    ERRORS,
    EXPORTED,
    PREPROCESSING,
    RECIPE,
    REFERENCE,
    REPORT,
    SIMPLIFIED,
    analysis_path,
    model_path,
    recipe_path,
    recording_name,
)
from vitexport.files import StageResult, StepEvent, write_atomic
from vitexport.pipeline.fallback import Candidate, candidates, settle
from vitexport.pipeline.materials import Materials
from vitexport.pipeline.stages import (
    compare_preprocessing,
    keep_disagreements,
    locate_errors,
    measure_latency,
    record_reference,
    record_variant,
)
from vitexport.pipeline.step import Step, settings_of
from vitexport.pipeline.workspace import Workspace
from vitexport.recipe.settings import QuantizeSettings
from vitexport.report import write_report
from vitexport.verification.judge import judge
from vitexport.verification.result import VerificationResult

__all__ = ["STAGES", "RecipeRun"]

_TORCH = ("torch", "transformers", "timm")
_ONNX = ("onnx", "onnx-ir", "onnxruntime")


class RecipeRun:
    """One run of a recipe: a method for each stage, which makes what it makes through the workspace.

    Attributes:
        recipe: What was asked for.
        given: Model and images.
        work: The bundle directory.
    """

    def __init__(self, given: Materials, work: Workspace) -> None:
        self.recipe = given.recipe
        self.given = given
        self.work = work

    def check_images(self) -> None:
        """Refuse calibration images that cannot be used, or that will judge the result as well.

        That costs as much as decoding them all, so what a quantized model was made from is not checked again.

        Raises:
            CalibrationError: There are too few, or they are verification images too.
            ImageError: One cannot be read.
        """
        from vitexport.host.quantize.calibration.checks import check_images
        from vitexport.inputs.images import content_hashes

        images = self.given.calibration
        keys = {self.given.calibration_key, self.given.images_key}
        made = () if self.work.bundle is None else self.work.bundle.artifacts
        if not any(keys <= set(artifact.provenance.parents) for artifact in made):
            check_images(images, content_hashes(images), self.given.verification.paths)

    # Stages, in the order of STAGES

    def load(self) -> None:
        recipe = self.recipe
        settings = settings_of(
            image_size=recipe.export.image_size,
            batch_size=recipe.verify.batch_size,
            replay_images=recipe.verify.replay_images,
        )
        recorded = self.work.ensure(
            Step(
                stage="load",
                output=recording_name(REFERENCE),
                kind="recording",
                settings=settings,
                parents=(self.given.model_key, self.given.images_key),
                tools=_TORCH,
                run=self._record_reference,
            )
        )
        self.work.ensure(
            Step(
                stage="load",
                output=PREPROCESSING,
                kind="analysis",
                settings=settings,
                parents=(self.given.model_key, recorded.companions[0].sha256),
                tools=(*_TORCH, "Pillow"),
                run=lambda: compare_preprocessing(
                    self.given.loaded, recipe.model, self.given.verification, self.work.current()
                ),
            )
        )
        if not self.work.dry_run:  # a changed name or recipe is always written, and by itself redoes no stage
            self.work.rename(recipe.name)
            self.work.ensure(
                Step(
                    stage="recipe",
                    output=RECIPE,
                    kind="recipe",
                    settings=recipe.model_dump(mode="json"),
                    run=self._write_recipe,
                )
            )

    def _record_reference(self) -> StageResult:
        self.work.begin(self.recipe.name, self.given.loaded.metadata)
        return record_reference(
            self.given.loaded, self.given.verification, self.recipe.verify, self.work.root, labels=self.given.labels
        )

    def _write_recipe(self) -> StageResult:
        path = recipe_path(self.work.root)
        write_atomic(path, yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False))
        return StageResult(path, "")

    def export(self) -> None:
        def export() -> StageResult:
            from vitexport.host.export import export_onnx

            return export_onnx(self.given.loaded, self.recipe.export, model_path(self.work.root, EXPORTED))

        self.work.ensure(
            Step(
                stage="export",
                output=EXPORTED,
                kind="onnx",
                settings=settings_of(self.recipe.export),
                parents=(self.given.model_key,),
                tools=(*_TORCH, *_ONNX),
                run=export,
            )
        )

    def simplify(self) -> None:
        exported = self.work.current().artifact(EXPORTED)

        def simplify() -> StageResult:
            from vitexport.host.simplify import simplify_onnx

            bundle = self.work.current()
            return simplify_onnx(bundle.path(exported), self.recipe.simplify, model_path(bundle.root, SIMPLIFIED))

        self.work.ensure(
            Step(
                stage="simplify",
                output=SIMPLIFIED,
                kind="simplified",
                settings=settings_of(self.recipe.simplify),
                parents=(exported.file.sha256,),
                tools=("onnxsim", *_ONNX),
                run=simplify,
            )
        )

    def quantize(self) -> None:
        settings = self.recipe.quantize
        assert settings is not None  # plan() leaves the stage out otherwise
        if self.recipe.gates.on_failure == "fail":
            self._make_candidate(settings)
            return
        choices = candidates(settings, self.recipe.gates)
        named = {key: settings_of(getattr(self.recipe, key)) for key in ("quantize", "gates", "verify", "benchmark")}
        settled = self.work.ensure(
            Step(
                stage="quantize",
                output=ATTEMPTS,
                kind="analysis",
                settings=named,
                parents=(*self._quantize_parents(), self.given.model_key),
                tools=_ONNX,
                run=partial(self._settle, choices),
            )
        )
        self._make_candidate(choices[settled.details["kept"]].settings)

    def _settle(self, choices: Sequence[Candidate]) -> StageResult:
        """Try candidates until one meets the gates, and write down what happened."""

        def attempt(choice: Candidate) -> VerificationResult:
            self.work.on_event(StepEvent("quantize", "running", f"trying {choice.name}"))
            self._make_candidate(choice.settings)
            self.verify()
            self.benchmark()
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
            self.work.keep_models({EXPORTED, SIMPLIFIED})
            return
        name = settings.precision
        bundle = self.work.current()

        def quantize() -> StageResult:
            from vitexport.host.quantize import quantize_onnx

            return quantize_onnx(
                bundle.path(bundle.artifact(SIMPLIFIED)),
                self.given.calibration,
                settings,
                model_path(bundle.root, name),
                progress=self.work.advance("quantize"),
            )

        self.work.ensure(
            Step(
                stage="quantize",
                output=name,
                kind="quantized",
                settings=settings_of(settings),
                parents=self._quantize_parents(),
                tools=_ONNX,
                run=quantize,
            )
        )
        self.work.keep_models({EXPORTED, SIMPLIFIED, name})

    def _quantize_parents(self) -> tuple[str, ...]:
        model = self.work.current().artifact(SIMPLIFIED).file.sha256
        return model, self.given.calibration_key, self.given.images_key

    def verify(self) -> None:
        for artifact in self.work.current().models:
            self.work.ensure(
                Step(
                    stage="verify",
                    output=recording_name(artifact.name),
                    kind="recording",
                    settings={"batch_size": self.recipe.verify.batch_size},
                    parents=(artifact.file.sha256, self.given.images_key),
                    tools=("onnxruntime",),
                    run=partial(self._record_variant, artifact),
                )
            )

    def _record_variant(self, artifact: Artifact) -> StageResult:
        return record_variant(self.work.current(), artifact, self.given.verification, self.recipe.verify)

    def benchmark(self) -> None:
        self.work.ensure(
            Step(
                stage="benchmark",
                output=BENCHMARK,
                kind="benchmark",
                settings=settings_of(self.recipe.benchmark),
                parents=(self.given.model_key, *(artifact.file.sha256 for artifact in self.work.current().models)),
                tools=(*_TORCH, "onnxruntime"),
                run=lambda: measure_latency(self.work.current(), self.given.loaded, self.recipe.benchmark),
            )
        )

    def report(self) -> None:
        models = tuple(artifact.file.sha256 for artifact in self.work.current().models)
        for output, tools, analyse in (
            (ERRORS, _ONNX, lambda: locate_errors(self.work.current())),
            (DISAGREEMENTS, (), lambda: keep_disagreements(self.work.current(), self.given.verification)),
        ):
            self.work.ensure(
                Step(
                    stage="report",
                    output=output,
                    kind="analysis",
                    settings={"replay_images": self.recipe.verify.replay_images},
                    parents=(*models, self.given.images_key),
                    tools=tools,
                    run=analyse,
                )
            )
        self.work.ensure(
            Step(
                stage="report",
                output=REPORT,
                kind="report",
                settings=settings_of(self.recipe.gates),
                parents=tuple(a.file.sha256 for a in self.work.current().artifacts if a.kind != "report"),
                tools=("Jinja2", "matplotlib"),
                run=self._write_report,
            )
        )

    def _write_report(self) -> StageResult:
        bundle = self.work.current()
        path, *companions = write_report(bundle, judge(bundle, self.recipe), self.recipe)
        return StageResult(path, "", tuple(companions))

    def prune(self) -> None:
        """Drop what an earlier recipe made here and this one does not."""
        if self.work.bundle is None:
            return
        wanted = {EXPORTED, SIMPLIFIED, self.recipe.quantize.precision if self.recipe.quantize else ""}
        attempts = self.work.bundle.find(ATTEMPTS)
        if attempts is not None and self.recipe.gates.on_failure == "fallback" and self.recipe.quantize is not None:
            wanted.add(attempts.details["precision"])
        elif attempts is not None:
            self.work.drop({ATTEMPTS})
        self.work.keep_models(wanted)


STAGES: Mapping[str, Callable[[RecipeRun], None]] = {
    "load": RecipeRun.load,
    "export": RecipeRun.export,
    "simplify": RecipeRun.simplify,
    "quantize": RecipeRun.quantize,
    "verify": RecipeRun.verify,
    "benchmark": RecipeRun.benchmark,
    "report": RecipeRun.report,
}
"""Name of every stage to what carries it out, in order."""
