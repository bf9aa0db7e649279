"""Writing files so that no reader ever sees half of one, hashing them, and what a stage says of the one it wrote."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitexport.errors import VitexportError
from vitexport.tables import Table, Tabular

__all__ = ["StageResult", "StepEvent", "as_path", "atomic_path", "finite", "sha256_file", "write_atomic"]


@dataclass(frozen=True, repr=False)
class StageResult(Tabular):
    """A file written by a stage.

    Attributes:
        path: The file, complete and under its final name.
        companions: Files that belong to it, such as ONNX external data or calibration statistics.
        precision: What its body computes in: ``float32``, ``int8``, ``fp8``, ``float16``, ``bfloat16``.
        details: JSON-ready facts for the report, e.g. node counts or the layers kept in float.
    """

    path: Path
    precision: str
    companions: tuple[Path, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of the file and its companions in bytes."""
        return sum(path.stat().st_size for path in (self.path, *self.companions))

    def __fspath__(self) -> str:
        """Return the file, so that a result can be passed wherever a path can."""
        return str(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "path": str(self.path),
            "precision": self.precision,
            "details": dict(self.details),
            "companions": [str(path) for path in self.companions],
        }

    def tables(self) -> tuple[Table, ...]:
        """Return what was written, and the plain facts about it."""
        facts = {"file": str(self.path), "MB": f"{self.bytes / 1e6:.2f}", "precision": self.precision}
        facts |= {key: str(value) for key, value in self.details.items() if isinstance(value, int | float | str)}
        return (Table.of_facts(facts),)


@dataclass(frozen=True)
class StepEvent:
    """What a progress display shows: a stage began, advanced, finished, or had nothing to do."""

    stage: str
    status: Literal["running", "done", "skipped"]
    message: str = ""
    fraction: float | None = None


def as_path(value: object, what: str) -> Path:
    """Return a path from text, a path, or an object that stands for one, such as a bundle or a stage's result.

    Args:
        value: What a caller passed.
        what: What it should be the path of, for the error message.

    Raises:
        VitexportError: It is no path.
    """
    if isinstance(value, str | os.PathLike) and str(value):
        return Path(value)
    raise VitexportError(
        f"Expected {what} as a path, found {value!r} ({type(value).__name__}).", "Pass a str or a pathlib.Path."
    )


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a path in a temporary directory beside ``final``; on success everything written there is moved into place.

    ``final`` itself is moved last, so that when it exists its companions (ONNX external data) do too. After an
    exception or a kill nothing is left under a final name.
    """
    if final.is_dir():
        raise VitexportError(f"Expected the name of a file to write, found the directory '{final}'.", "Add a name.")
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent) as folder:
        temporary = Path(folder) / final.name
        yield temporary
        companions = sorted(path for path in Path(folder).iterdir() if path != temporary)
        for path in [*companions, temporary]:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            path.replace(final.parent / path.name)


def write_atomic(final: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to ``final`` in one step."""
    with atomic_path(final) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def finite(value: Any) -> Any:
    """Return ``value`` with tuples as lists and numbers that are not finite as None: JSON has no name for those."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
