"""The bundle directory while a run works on it: steps are made or found current, and kept at once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from pathlib import Path

from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.layout import is_bundle, recording_name
from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import BundleError
from vitexport.files import StepEvent
from vitexport.pipeline.step import Step, is_current, make

__all__ = ["OnEvent", "StaleError", "Workspace"]

OnEvent = Callable[[StepEvent], None]


class StaleError(Exception):
    """A dry run met a step that would have to run."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class Workspace:
    """A bundle as it grows.

    Attributes:
        root: Bundle directory.
        bundle: What it holds; None before the first step.
        executed: Stages that did something, in order.
        skipped: Stages that had nothing to do.
    """

    def __init__(self, root: Path, *, force: bool, dry_run: bool, on_event: OnEvent) -> None:
        self.root = root
        self.force = force
        self.dry_run = dry_run
        self.on_event = on_event
        self.executed: list[str] = []
        self.skipped: list[str] = []
        self._made: set[str] = set()
        self.bundle: Bundle | None = None
        if is_bundle(root):
            # Forced, everything is made again: what cannot be read, such as an older bundle, is replaced.
            with suppress(BundleError) if force else nullcontext():
                self.bundle = Bundle.open(root, check_files=False)

    def current(self) -> Bundle:
        """Return the bundle.

        Raises:
            BundleError: The first step has not run yet.
        """
        if self.bundle is None:
            raise BundleError(f"'{self.root}' holds no bundle yet.", "Run the recipe from its first stage.")
        return self.bundle

    def ensure(self, step: Step) -> Artifact:
        """Run a step unless its result is current, and keep the result in the bundle at once."""
        forced = self.force and step.output not in self._made
        current = None if forced or self.bundle is None else is_current(step, self.bundle)
        if current is not None:
            if step.stage not in (*self.skipped, *self.executed):
                self.skipped.append(step.stage)
            self.on_event(StepEvent(step.stage, "skipped", f"{step.output} is current"))
            return current
        if self.dry_run:
            raise StaleError(step.stage)
        self.on_event(StepEvent(step.stage, "running", step.output))
        self.root.mkdir(parents=True, exist_ok=True)
        artifact = make(step, self.root)
        self._made.add(step.output)
        self.bundle = self.current().with_artifact(artifact)
        self.bundle.save()
        if step.stage in self.skipped:
            self.skipped.remove(step.stage)
        if step.stage not in self.executed:
            self.executed.append(step.stage)
        self.on_event(StepEvent(step.stage, "done", step.output))
        return artifact

    def advance(self, stage: str) -> Callable[[str, float], None]:
        """Return a progress callback for a stage."""
        return lambda message, fraction: self.on_event(StepEvent(stage, "running", message, fraction))

    def begin(self, name: str, metadata: ModelMetadata) -> None:
        """Give the bundle its header; what earlier runs made stays."""
        self.bundle = Bundle(
            self.root, name=name, metadata=metadata, artifacts=self.bundle.artifacts if self.bundle else ()
        )

    def rename(self, name: str) -> None:
        """Write the bundle's name, if it is another one."""
        bundle = self.current()
        if bundle.name != name:
            self.begin(name, bundle.metadata)
            self.current().save()

    def keep_models(self, names: Collection[str]) -> None:
        """Drop the models of other names, with their recordings."""
        stale = {artifact.name for artifact in self.current().models} - set(names)
        self.drop(stale | {recording_name(name) for name in stale})

    def drop(self, names: Collection[str]) -> None:
        """Remove artifacts and their files; a dry run removes nothing."""
        if self.dry_run:
            return
        gone = [artifact for artifact in self.current().artifacts if artifact.name in names]
        if gone:
            self.bundle = self.current().without(names)
            self.bundle.save()
        for artifact in gone:
            for record in (artifact.file, *artifact.companions):
                (self.root / record.path).unlink(missing_ok=True)
