"""Rounding weights to int8, one scale per output channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitexport.host.quantize.emit import QuantizedWeight

__all__ = ["round_to_nearest"]


def round_to_nearest(weight: NDArray[np.float32], levels: int = 127) -> QuantizedWeight:
    """Quantize ``[K, N]`` symmetrically per output channel over its full range, rounding half to even.

    Args:
        weight: float32 ``[K, N]``.
        levels: Largest magnitude of the integers: 127, or 63 for 7-bit weights.
    """
    amax = np.abs(weight).max(axis=0)
    scale = np.where(amax > 0, amax / levels, 1.0).astype(np.float32)
    values = np.clip(np.rint(weight / scale), -levels, levels).astype(np.int8)
    return QuantizedWeight(values, scale)
