"""A transform of a layer's input as the planner would have chosen it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.numerics.qparams import symmetric_qparams
from vitexport.host.quantize.numerics.rotation import Rotation
from vitexport.host.quantize.planning.search import InputPlan

__all__ = ["input_plan"]

Floats = NDArray[np.float32]


def input_plan(scale: Floats, shift: Floats | None = None, rotation: Rotation | None = None) -> InputPlan:
    """Return a plan of this scale, shift (none: zeros) and rotation; how the tensor is then quantized means nothing."""
    moved = np.zeros_like(scale) if shift is None else shift
    return InputPlan(scale, moved, symmetric_qparams(1.0, "int8"), 0.0, rotation=rotation)
