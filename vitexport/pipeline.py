"""Recipe to bundle: the stages in order, each skipped when nothing it depends on has changed. The only orchestrator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vitexport.accuracy import find_labels
from vitexport.bundle import BUNDLE_FILE, Artifact, Bundle, Kind
from vitexport.errors import BundleError, CalibrationError
from vitexport.evidence import VerificationImages, measure_latency, record_reference, record_rung
from vitexport.files import sha256_file, write_atomic
from vitexport.images import list_images
from vitexport.ladder import REFERENCE, Ladder
from vitexport.recipe import ImageSet, Recipe
from vitexport.report import write_report
from vitexport.resume import Step, StepEvent, is_current, make, settings_of, source_fingerprint
from vitexport.stage import StageResult
from vitexport.verdict import RECIPE_FILE, judge, recording_name

if TYPE_CHECKING:
    from vitexport.host.sources import LoadedModel

__all__ = ["STAGES", "RunResult", "plan", "run"]

STAGES = ("load", "export", "simplify", "quantize", "verify", "benchmark", "report")

_TORCH = ("torch", "transformers", "timm")
_ONNX = ("onnx", "onnx-ir", "onnxruntime")

OnEvent = Callable[[StepEvent], None]


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        bundle: The bundle as it is now; None after a dry run where there is none yet.
        ladder: The verdict; None when the run stopped before verification.
        executed: Stages that did something, in order.
        skipped: Stages whose result was still current.
    """

    bundle: Bundle | None
    ladder: Ladder | None
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
        recipe: With absolute paths, as :func:`vitexport.recipe.load_recipe` returns it.
        root: Bundle directory, created when absent.
        until: Stop after this stage.
        force: Redo every stage.
        dry_run: Only find out what would be done; a stage after the first stale one counts as to be done, although it
            is skipped if the stale one turns out to make the same file again.
        on_event: Called as stages begin, advance and end.

    Raises:
        VitexportError: A stage could not do what was asked; what earlier stages made stays and is reused next time.
    """
    return _Run(recipe, root, force=force, dry_run=dry_run, on_event=on_event).climb(plan(recipe, until))


class _StaleError(Exception):
    """A dry run met a step that would have to run."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class _Run:
    """State of one run: the bundle as it grows, and the PyTorch model if a stage needs it."""

    def __init__(self, recipe: Recipe, root: Path, *, force: bool, dry_run: bool, on_event: OnEvent) -> None:
        self.dry_run = dry_run
        self.recipe = recipe
        self.root = root
        self.force = force
        self.on_event = on_event
        self.executed: list[str] = []
        self.skipped: list[str] = []
        self.bundle: Bundle | None = None
        if (root / BUNDLE_FILE).is_file():
            self.bundle = Bundle.open(root, check_files=False)

    def climb(self, stages: tuple[str, ...]) -> RunResult:
        # Everything the user named is checked before the first expensive stage.
        _ = self.verification
        if "quantize" in stages:
            _ = self.calibration
        if not self.dry_run:
            self._prune()
        try:
            for stage in stages:
                getattr(self, f"_{stage}")()
        except _StaleError as stale:
            pending = stages[stages.index(stale.stage) :]
            return RunResult(self.bundle, None, pending, tuple(self.skipped))
        bundle = self._current()
        ladder = judge(bundle, self.recipe) if "verify" in stages else None
        return RunResult(bundle, ladder, tuple(self.executed), tuple(self.skipped))

    @cached_property
    def verification(self) -> VerificationImages:
        images = self.recipe.data.verification
        paths = list_images(images.images, limit=images.limit)
        names = tuple(path.relative_to(images.images).as_posix() for path in paths)
        return VerificationImages(paths, names, find_labels(images.images, paths, images.labels))

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
        return _fingerprint(self.recipe.data.verification, images.paths) + f":{images.labels}"

    def _current(self) -> Bundle:
        if self.bundle is None:
            raise BundleError(f"'{self.root}' holds no bundle yet.", "Run the recipe from its first stage.")
        return self.bundle

    def _ensure(self, step: Step) -> Artifact:
        """Run a step unless its result is current, and keep the result in the bundle at once."""
        current = None if self.force or self.bundle is None else is_current(step, self.bundle)
        if current is not None:
            if step.stage not in self.skipped:
                self.skipped.append(step.stage)
            self.on_event(StepEvent(step.stage, "skipped", f"{step.output} is current"))
            return current
        if self.dry_run:
            raise _StaleError(step.stage)
        self.on_event(StepEvent(step.stage, "running", step.output))
        self.root.mkdir(parents=True, exist_ok=True)
        artifact = make(step, self.root)
        self.bundle = self._current().with_artifact(artifact)
        self.bundle.save()
        if step.stage not in self.executed:
            self.executed.append(step.stage)
        self.on_event(StepEvent(step.stage, "done", step.output))
        return artifact

    def _advance(self, stage: str) -> Callable[[str, float], None]:
        return lambda message, fraction: self.on_event(StepEvent(stage, "running", message, fraction))

    # Stages, in order

    def _load(self) -> None:
        recipe = self.recipe
        settings = settings_of(
            name=recipe.name,
            image_size=recipe.export.image_size,
            batch_size=recipe.verify.batch_size,
            replay_images=recipe.verify.replay_images,
        )
        self._ensure(
            Step(
                "load",
                recording_name(REFERENCE),
                "recording",
                settings,
                (self.model_key, self.images_key),
                _TORCH,
                self._record_reference,
            )
        )
        self._ensure(Step("load", "recipe", "recipe", self._resolved_recipe(), (), (), self._write_recipe))

    def _record_reference(self) -> StageResult:
        loaded = self.loaded
        result = record_reference(loaded, self.verification, self.recipe.verify, self.recordings)
        self.bundle = Bundle(
            self.root,
            name=self.recipe.name,
            model=loaded.spec,
            preprocess=loaded.preprocess,
            labels=loaded.labels,
            artifacts=self.bundle.artifacts if self.bundle else (),
        )
        return result

    def _resolved_recipe(self) -> dict[str, object]:
        return self.recipe.model_dump(mode="json")

    def _write_recipe(self) -> StageResult:
        path = self.root / RECIPE_FILE
        write_atomic(path, yaml.safe_dump(self._resolved_recipe(), sort_keys=False))
        return StageResult(path, "")

    def _export(self) -> None:
        def export() -> StageResult:
            from vitexport.host.export import export_onnx

            return export_onnx(self.loaded, self.recipe.export, self._model_path("onnx"))

        settings = settings_of(self.recipe.export)
        self._ensure(Step("export", "onnx", "onnx", settings, (self.model_key,), (*_TORCH, *_ONNX), export))

    def _simplify(self) -> None:
        def simplify() -> StageResult:
            from vitexport.host.simplify import simplify_onnx

            return simplify_onnx(self._rung_path("onnx"), self.recipe.simplify, self._model_path("simplified"))

        self._ensure(self._transform("simplify", "simplified", "simplified", "onnx", ("onnxsim", *_ONNX), simplify))

    def _quantize(self) -> None:
        settings = self.recipe.quantize
        assert settings is not None  # plan() leaves the stage out otherwise
        name = settings.precision

        def quantize() -> StageResult:
            from vitexport.host.quantize import quantize_onnx

            return quantize_onnx(
                self._rung_path("simplified"),
                self.calibration,
                settings,
                self._model_path(name),
                verification=self.verification.paths,
                progress=self._advance("quantize"),
            )

        calibration = self.recipe.data.calibration
        assert calibration is not None  # self.calibration has checked it
        parents = (_fingerprint(calibration, self.calibration), self.images_key)
        self._ensure(self._transform("quantize", name, "quantized", "simplified", _ONNX, quantize, parents))

    def _transform(
        self,
        stage: str,
        output: str,
        kind: Kind,
        source: str,
        tools: tuple[str, ...],
        make_it: Callable[[], StageResult],
        parents: tuple[str, ...] = (),
    ) -> Step:
        settings = settings_of(getattr(self.recipe, stage))
        parent = self._current().artifact(source).file.sha256
        return Step(stage, output, kind, settings, (parent, *parents), tools, make_it)

    def _verify(self) -> None:
        for artifact in self._current().models:
            self._ensure(
                Step(
                    "verify",
                    recording_name(artifact.name),
                    "recording",
                    {"batch_size": self.recipe.verify.batch_size},
                    (artifact.file.sha256, self.images_key),
                    ("onnxruntime",),
                    partial(self._record_rung, artifact),
                )
            )

    def _record_rung(self, artifact: Artifact) -> StageResult:
        return record_rung(self._current(), artifact, self.verification, self.recipe.verify, self.recordings)

    def _benchmark(self) -> None:
        rungs = self._current().models
        parents = (self.model_key, *(artifact.file.sha256 for artifact in rungs))
        settings = settings_of(self.recipe.benchmark)
        tools = (*_TORCH, "onnxruntime")
        self._ensure(Step("benchmark", "benchmark", "benchmark", settings, parents, tools, self._measure))

    def _measure(self) -> StageResult:
        return measure_latency(self._current(), self.loaded, self.recipe.benchmark)

    def _report(self) -> None:
        bundle = self._current()
        parents = tuple(artifact.file.sha256 for artifact in bundle.artifacts if artifact.kind != "report")
        settings = settings_of(self.recipe.gates)
        self._ensure(
            Step("report", "report", "report", settings, parents, ("Jinja2", "matplotlib"), self._write_report)
        )

    def _write_report(self) -> StageResult:
        bundle = self._current()
        path, *companions = write_report(bundle, judge(bundle, self.recipe), self.recipe)
        return StageResult(path, "", tuple(companions))

    # Paths and names

    @property
    def recordings(self) -> Path:
        return self.root / "recordings"

    def _model_path(self, name: str) -> Path:
        return self.root / "models" / f"{name}.onnx"

    def _rung_path(self, name: str) -> Path:
        bundle = self._current()
        return bundle.path(bundle.artifact(name))

    def _prune(self) -> None:
        """Drop models, with their files, that an earlier recipe made here and this one does not."""
        if self.bundle is None:
            return
        wanted = {"onnx", "simplified", self.recipe.quantize.precision if self.recipe.quantize else ""}
        stale = {artifact.name for artifact in self.bundle.models} - wanted
        names = stale | {recording_name(name) for name in stale}
        gone = [artifact for artifact in self.bundle.artifacts if artifact.name in names]
        if gone:
            self.bundle = self.bundle.without(names)
            self.bundle.save()
        for artifact in gone:
            for record in (artifact.file, *artifact.companions):
                (self.root / record.path).unlink(missing_ok=True)


def _fingerprint(images: ImageSet, paths: Sequence[Path]) -> str:
    """Return a hash over the names and bytes of images."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(images.images).as_posix()}\0{sha256_file(path)}\0".encode())
    return digest.hexdigest()
