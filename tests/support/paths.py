"""Places in the repository."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CALIBRATION", "HOLDOUT", "QUICKSTART", "ROOT"]

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = ROOT / "calib" / "calibration"
HOLDOUT = ROOT / "calib" / "holdout"
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
