"""Recipe to bundle: the stages in order, each skipped when nothing it depends on has changed. The only orchestrator."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vitexport.bundle.bundle import Artifact, Bundle
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
from vitexport.errors import CalibrationError
from vitexport.files import StageResult, StepEvent, write_atomic
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
from vitexport.pipeline.step import Step, images_fingerprint, settings_of, source_fingerprint
from vitexport.pipeline.workspace import OnEvent, StaleError, Workspace
from vitexport.recipe.settings import QuantizeSettings, Recipe
from vitexport.report import write_report
from vitexport.verification.judge import judge
from vitexport.verification.result import VerificationResult

if TYPE_CHECKING:
    from vitexport.host.sources import LoadedModel

__all__ = ["STAGES", "RunResult", "plan", "run"]

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
    with closing(_Run(recipe, work)) as running:
        return running.execute(plan(recipe, until))


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
            self.prune()
        try:
            for stage in stages:
                _STAGES[stage](self)
        except StaleError as stale:
            pending = stages[stages.index(stale.stage) :]
            return RunResult(self.work.bundle, None, pending, tuple(self.work.skipped))
        bundle = self.work.current()
        verification = judge(bundle, self.recipe) if "verify" in stages else None
        return RunResult(bundle, verification, tuple(self.work.executed), tuple(self.work.skipped))

    def close(self) -> None:
        if "verification" in self.__dict__:
            self.verification.close()

    # What the stages work on, made when the first of them needs it

    @cached_property
    def verification(self) -> VerificationImages:
        images = self.recipe.data.verification
        paths = list_images(images.images, limit=images.limit)
        return VerificationImages(images.images, paths, find_targets(images.images, paths, images.labels))

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

    # Stages, in the order of _STAGES

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
                parents=(self.model_key, self.images_key),
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
                parents=(self.model_key, recorded.companions[0].sha256),
                tools=(*_TORCH, "Pillow"),
                run=lambda: compare_preprocessing(self.loaded, recipe.model, self.verification, self.work.current()),
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
        self.work.begin(self.recipe.name, self.loaded.metadata)
        return record_reference(self.loaded, self.verification, self.recipe.verify, self.work.root)

    def _write_recipe(self) -> StageResult:
        path = recipe_path(self.work.root)
        write_atomic(path, yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False))
        return StageResult(path, "")

    def export(self) -> None:
        def export() -> StageResult:
            from vitexport.host.export import export_onnx

            return export_onnx(self.loaded, self.recipe.export, model_path(self.work.root, EXPORTED))

        self.work.ensure(
            Step(
                stage="export",
                output=EXPORTED,
                kind="onnx",
                settings=settings_of(self.recipe.export),
                parents=(self.model_key,),
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
                parents=(*self._quantize_parents(), self.model_key),
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
                self.calibration,
                settings,
                model_path(bundle.root, name),
                verification=self.verification.paths,
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
        calibration = self.recipe.data.calibration
        assert calibration is not None  # self.calibration has checked it
        model = self.work.current().artifact(SIMPLIFIED).file.sha256
        return model, images_fingerprint(calibration.images, self.calibration), self.images_key

    def verify(self) -> None:
        for artifact in self.work.current().models:
            self.work.ensure(
                Step(
                    stage="verify",
                    output=recording_name(artifact.name),
                    kind="recording",
                    settings={"batch_size": self.recipe.verify.batch_size},
                    parents=(artifact.file.sha256, self.images_key),
                    tools=("onnxruntime",),
                    run=partial(self._record_variant, artifact),
                )
            )

    def _record_variant(self, artifact: Artifact) -> StageResult:
        return record_variant(self.work.current(), artifact, self.verification, self.recipe.verify)

    def benchmark(self) -> None:
        self.work.ensure(
            Step(
                stage="benchmark",
                output=BENCHMARK,
                kind="benchmark",
                settings=settings_of(self.recipe.benchmark),
                parents=(self.model_key, *(artifact.file.sha256 for artifact in self.work.current().models)),
                tools=(*_TORCH, "onnxruntime"),
                run=lambda: measure_latency(self.work.current(), self.loaded, self.recipe.benchmark),
            )
        )

    def report(self) -> None:
        models = tuple(artifact.file.sha256 for artifact in self.work.current().models)
        for output, tools, analyse in (
            (ERRORS, _ONNX, lambda: locate_errors(self.work.current())),
            (DISAGREEMENTS, (), lambda: keep_disagreements(self.work.current(), self.verification)),
        ):
            self.work.ensure(
                Step(
                    stage="report",
                    output=output,
                    kind="analysis",
                    settings={"replay_images": self.recipe.verify.replay_images},
                    parents=(*models, self.images_key),
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


_STAGES: Mapping[str, Callable[[_Run], None]] = {
    "load": _Run.load,
    "export": _Run.export,
    "simplify": _Run.simplify,
    "quantize": _Run.quantize,
    "verify": _Run.verify,
    "benchmark": _Run.benchmark,
    "report": _Run.report,
}

STAGES = tuple(_STAGES)
"""Names of all stages, in order."""
