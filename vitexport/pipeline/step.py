"""When a stage may be skipped: its key is a hash over everything its result depends on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vitexport.bundle.bundle import Artifact, Bundle, FileRecord, Kind, Provenance
from vitexport.errors import BundleError
from vitexport.files import StageResult, sha256_file
from vitexport.inputs.labels.class_names import read_class_names
from vitexport.recipe.settings import ModelSettings
from vitexport.source import ModelSource

__all__ = [
    "Step",
    "images_fingerprint",
    "is_current",
    "make",
    "settings_of",
    "source_fingerprint",
    "step_key",
    "tool_versions",
]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a run, and what its result depends on.

    Attributes:
        stage: Name of the stage.
        output: Name of the artifact it makes.
        kind: Kind of that artifact.
        settings: What it was asked to do, JSON-ready.
        parents: SHA-256 of what it is made from.
        tools: Packages whose version matters.
        run: Makes it.
    """

    stage: str
    output: str
    kind: Kind
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    run: Callable[[], StageResult]


def tool_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the installed versions of packages, without importing them; absent ones are left out."""
    found = {name: _version(name) for name in packages}
    return {name: version for name, version in found.items() if version is not None}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def step_key(step: Step) -> str:
    """Return the SHA-256 over stage, settings, parents and tool versions."""
    content = [step.stage, dict(step.settings), list(step.parents), tool_versions(("vitexport", *step.tools))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_current(step: Step, bundle: Bundle) -> Artifact | None:
    """Return the artifact that running ``step`` would make again, or None when it has to run."""
    artifact = bundle.find(step.output)
    if artifact is None or artifact.provenance.key != step_key(step):
        return None
    try:
        bundle.check_artifact(artifact)
    except BundleError:
        return None
    return artifact


def make(step: Step, root: Path) -> Artifact:
    """Run a step and describe what it made."""
    start = time.perf_counter()
    result = step.run()
    return Artifact(
        name=step.output,
        kind=step.kind,
        file=FileRecord.of(result.path, root),
        companions=tuple(FileRecord.of(path, root) for path in result.companions),
        precision=result.precision,
        provenance=Provenance(
            stage=step.stage,
            key=step_key(step),
            settings=dict(step.settings),
            parents=step.parents,
            tools=tool_versions(("vitexport", *step.tools)),
            seconds=round(time.perf_counter() - start, 3),
        ),
        details=dict(result.details),
    )


def source_fingerprint(settings: ModelSettings) -> str:
    """Return a hash of a model source without loading it: of the files that lie here, or of the id and revision.

    A hub id without a revision is identified by its name only: what the hub serves may change, and then ``--force``
    fetches it again. Class names from a file count by what is in it.
    """
    source = ModelSource.parse(settings.source)
    content = list(source.content())
    described: list[Any] = [settings.model_dump(mode="json", exclude={"source"}), source.library, source.name, *content]
    if settings.class_names is not None:
        described.append(read_class_names(settings.class_names))
    if source.path is not None and not content:
        described.append(str(source.path))  # nothing is there yet; loading it will say so
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def images_fingerprint(folder: Path, paths: Sequence[Path]) -> str:
    """Return a hash over the names, relative to their folder, and bytes of images."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\0".encode())
    return digest.hexdigest()


def settings_of(*models: BaseModel | None, **more: Any) -> dict[str, Any]:
    """Merge settings models and values into one JSON-ready mapping."""
    merged: dict[str, Any] = {}
    for model in models:
        if model is not None:
            merged.update(model.model_dump(mode="json"))
    return {**merged, **more}
