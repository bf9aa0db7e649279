"""Where a model loses accuracy, and what will be hard about it before anything is built."""

from __future__ import annotations

from vitexport.host.diagnose.bisect import BisectReport, LayerError, bisect
from vitexport.host.diagnose.ranges import QuantizedRange, measure_ranges

__all__ = ["BisectReport", "LayerError", "QuantizedRange", "bisect", "measure_ranges"]
