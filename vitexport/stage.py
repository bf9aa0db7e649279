"""What every stage function returns: the file it wrote and what it has to say about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["StageResult"]


@dataclass(frozen=True)
class StageResult:
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
