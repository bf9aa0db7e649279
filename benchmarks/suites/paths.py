"""Places that the benchmarks read and write."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["BENCHMARKS_PAGE", "MODELS_PAGE", "QUANTIZATION_PAGE", "RESULTS", "ROOT", "SAMPLE", "SHARED"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BENCHMARKS_PAGE = ROOT / "docs" / "benchmarks.md"
MODELS_PAGE = ROOT / "docs" / "models.md"
QUANTIZATION_PAGE = ROOT / "docs" / "quantization.md"

SHARED = Path(os.environ.get("VITEXPORT_SHARED", ROOT.parent / "shared"))
"""Real weights and photographs."""

SAMPLE = SHARED / "data" / "imagenet-1k-sample"
"""Photographs in ``calib`` and ``dev``."""
