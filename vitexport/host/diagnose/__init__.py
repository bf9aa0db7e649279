"""Where a model loses accuracy, and what will be hard about it before anything is built."""

from __future__ import annotations

from vitexport.host.diagnose.advice import Advice, advise, recipe_of
from vitexport.host.diagnose.anatomy import Anatomy, measure_anatomy
from vitexport.host.diagnose.bisect import BisectReport, LayerError, bisect
from vitexport.host.diagnose.ranges import QuantizedRange, measure_ranges

__all__ = [
    "Advice",
    "Anatomy",
    "BisectReport",
    "LayerError",
    "QuantizedRange",
    "advise",
    "bisect",
    "measure_anatomy",
    "measure_ranges",
    "recipe_of",
]
