"""What the toolkit writes: artifacts with their provenance, gathered in a bundle directory.

A bundle is the contract between the machine that exports and the machine that runs. Everything in it is listed in
``bundle.json`` with its SHA-256, and opening one checks that nothing is missing or altered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from vitexport.bundle.metadata import ModelMetadata, ModelSpec
from vitexport.errors import BundleError
from vitexport.files import as_path, sha256_file, write_atomic
from vitexport.inputs.preprocess import PreprocessSpec
from vitexport.scoring import Scoring
from vitexport.tables import Table, Tabular

__all__ = ["BUNDLE_FILE", "SCHEMA", "Artifact", "Bundle", "FileRecord", "Provenance"]

BUNDLE_FILE = "bundle.json"
SCHEMA = 3
"""Raised whenever an older program could misread a bundle."""

Kind = Literal["onnx", "simplified", "quantized", "engine", "recording", "benchmark", "analysis", "report", "recipe"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """One file of a bundle: its path relative to the bundle, its size in bytes and its SHA-256."""

    path: str
    bytes: int
    sha256: str

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or "\\" in value:
            raise ValueError(f"a path must stay inside the bundle, found {value!r}")
        return value

    @classmethod
    def of(cls, path: Path, root: Path) -> FileRecord:
        """Record the file at ``path`` relative to ``root``."""
        return cls(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=sha256_file(path))


class Provenance(_Record):
    """What made an artifact: enough to decide whether making it again would give the same.

    Attributes:
        stage: Name of the stage.
        key: SHA-256 over stage, settings, parents and tool versions; equal keys mean equal results.
        settings: The settings the stage ran with.
        parents: SHA-256 of what it was made from.
        tools: Package versions that took part.
        seconds: How long it took.
    """

    stage: str
    key: str
    settings: dict[str, Any]
    parents: tuple[str, ...]
    tools: dict[str, str]
    seconds: float


class Artifact(_Record):
    """A file made by a stage, with companions such as ONNX external data.

    Attributes:
        name: Name of the variant or recording inside the bundle, e.g. ``onnx``, ``simplified``, ``int8``.
        kind: What the file is.
        file: The file.
        companions: Files that belong to it.
        precision: ``float32``, ``int8``, ...; empty where it means nothing.
        provenance: What made it.
        details: Facts a stage wants to report, e.g. node counts.
    """

    name: str
    kind: Kind
    file: FileRecord
    companions: tuple[FileRecord, ...] = ()
    precision: str = ""
    provenance: Provenance
    details: dict[str, Any] = {}

    @property
    def total_bytes(self) -> int:
        """Size of the file and its companions in bytes."""
        return self.file.bytes + sum(companion.bytes for companion in self.companions)

    @property
    def sha256(self) -> str:
        """Hash of the model: the file's SHA-256; where weights lie beside it, that of all their digests, one a line."""
        weights = () if self.kind == "engine" else self.companions  # what lies beside an engine only describes it
        if not weights:
            return self.file.sha256
        digests = "".join(f"{record.sha256}\n" for record in (self.file, *weights))
        return hashlib.sha256(digests.encode()).hexdigest()


class _BundleData(_Record):
    schema_: Literal[3]
    name: str
    model: dict[str, Any]
    preprocess: PreprocessSpec
    class_names: tuple[str, ...] = ()
    scoring: Scoring
    synsets: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=lambda name: name.rstrip("_"))


class Bundle(Tabular):
    """An immutable view of a bundle directory.

    Attributes:
        root: The directory.
        name: Name of the recipe that made it.
        metadata: Identity and interface of the model, its preprocessing and class names.
        artifacts: Everything in it, oldest first.
    """

    def __init__(
        self, root: str | Path, *, name: str, metadata: ModelMetadata, artifacts: tuple[Artifact, ...] = ()
    ) -> None:
        self.root = Path(root)
        self.name = name
        self.metadata = metadata
        self.artifacts = artifacts

    def __fspath__(self) -> str:
        """Return the directory, so that a bundle can be passed wherever a path can."""
        return str(self.root)

    @property
    def model(self) -> ModelSpec:
        """Identity and interface of the model."""
        return self.metadata.model

    @property
    def preprocess(self) -> PreprocessSpec:
        """What turns an image into an input."""
        return self.metadata.preprocess

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by output index."""
        return self.metadata.class_names

    @classmethod
    def open(cls, root: str | PathLike[str], *, check_files: bool = True) -> Bundle:
        """Open a bundle and check that its files are all there and unaltered.

        Args:
            root: Bundle directory.
            check_files: Compare every file's SHA-256.

        Raises:
            BundleError: The directory is no bundle, of another schema, or a file is missing or altered.
        """
        root = as_path(root, "a bundle")
        path = root / BUNDLE_FILE
        if root.is_file():
            raise BundleError(
                f"Expected a bundle directory at '{root}', found a file.", "Give the directory that holds bundle.json."
            )
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BundleError(
                f"Expected a bundle at '{root}', but it has no {BUNDLE_FILE}.",
                "Make one with `vitexport run RECIPE -o DIR`.",
            ) from error
        except (OSError, ValueError) as error:
            raise BundleError(f"'{path}' cannot be read: {error}", "Run the recipe again with --force.") from error
        schema = raw.get("schema") if isinstance(raw, Mapping) else None
        if schema != SCHEMA:
            raise BundleError(
                f"Expected bundle schema {SCHEMA} in '{path}', found {schema!r}.",
                "Run its recipe again with force (--force), or use the vitexport version that wrote the bundle.",
            )
        try:
            data = _BundleData.model_validate(raw)
            model = ModelSpec.from_dict(data.model)
        except (ValidationError, KeyError, TypeError, AssertionError) as error:
            raise BundleError(f"'{path}' is not a valid bundle: {error}", "Run the recipe again.") from error
        metadata = ModelMetadata(model, data.preprocess, data.class_names, data.scoring, synsets=data.synsets)
        bundle = cls(root, name=data.name, metadata=metadata, artifacts=data.artifacts)
        if check_files:
            for artifact in bundle.artifacts:
                bundle.check_artifact(artifact)
        return bundle

    def to_dict(self) -> dict[str, Any]:
        """Return what ``bundle.json`` holds."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "model": asdict(self.model),
            "preprocess": self.preprocess.model_dump(mode="json"),
            "class_names": list(self.class_names),
            "scoring": self.metadata.scoring,
            **({"synsets": list(self.metadata.synsets)} if self.metadata.synsets else {}),
            "artifacts": [artifact.model_dump(mode="json") for artifact in self.artifacts],
        }

    def tables(self) -> tuple[Table, ...]:
        """Return the models and the other artifacts, with their files and sizes."""
        rows = tuple(
            (artifact.name, artifact.kind, artifact.precision, f"{artifact.total_bytes / 1e6:.2f}", artifact.file.path)
            for artifact in self.artifacts
        )
        title = f"{self.name}: {self.model.id} ({self.model.family}, {self.model.task}) in {self.root}"
        return (
            Table(title, ("artifact", "kind", "precision", "MB", "file"), rows, text=("kind", "precision", "file")),
        )

    def save(self) -> None:
        """Write ``bundle.json`` in one step."""
        write_atomic(self.root / BUNDLE_FILE, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")

    def with_artifact(self, artifact: Artifact) -> Bundle:
        """Return a bundle with ``artifact`` in the place of the one of the same name, or at the end."""
        if self.find(artifact.name) is None:
            return self._with((*self.artifacts, artifact))
        return self._with(tuple(artifact if other.name == artifact.name else other for other in self.artifacts))

    def without(self, names: Collection[str]) -> Bundle:
        """Return a bundle without the artifacts of those names; their files stay."""
        return self._with(tuple(artifact for artifact in self.artifacts if artifact.name not in names))

    def _with(self, artifacts: tuple[Artifact, ...]) -> Bundle:
        return Bundle(self.root, name=self.name, metadata=self.metadata, artifacts=artifacts)

    def find(self, name: str) -> Artifact | None:
        """Return the artifact of that name, or None."""
        return next((artifact for artifact in self.artifacts if artifact.name == name), None)

    def artifact(self, name: str) -> Artifact:
        """Return the artifact of that name.

        Raises:
            BundleError: There is none.
        """
        found = self.find(name)
        if found is None:
            names = ", ".join(artifact.name for artifact in self.artifacts) or "nothing"
            raise BundleError(
                f"Expected '{name}' in the bundle '{self.root}', found {names}.", "Run its recipe to the end."
            )
        return found

    def path(self, artifact: Artifact) -> Path:
        """Return where an artifact's file lies."""
        return self.root / artifact.file.path

    @property
    def models(self) -> tuple[Artifact, ...]:
        """The variants that a runtime can open, in the order they were made."""
        return tuple(a for a in self.artifacts if a.kind in ("onnx", "simplified", "quantized", "engine"))

    def check_artifact(self, artifact: Artifact) -> None:
        """Check that an artifact's files are there and unaltered.

        Raises:
            BundleError: A file is missing or its SHA-256 differs.
        """
        for record in (artifact.file, *artifact.companions):
            path = self.root / record.path
            if not path.is_file():
                raise BundleError(
                    f"Expected '{record.path}' in the bundle '{self.root}', but it is missing.",
                    "Copy the bundle again as a whole, or run its recipe again.",
                )
            found = sha256_file(path)
            if found != record.sha256:
                raise BundleError(
                    f"'{record.path}' in the bundle '{self.root}' was altered: "
                    f"expected sha256 {record.sha256[:16]}..., found {found[:16]}....",
                    "Copy the bundle again as a whole, or run its recipe again.",
                )
