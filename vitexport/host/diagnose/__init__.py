"""Where a model loses accuracy, and what will be hard about it before anything is built."""

from __future__ import annotations

from vitexport.host.diagnose.bisect import BisectReport, LayerError, bisect

__all__ = ["BisectReport", "LayerError", "bisect"]
