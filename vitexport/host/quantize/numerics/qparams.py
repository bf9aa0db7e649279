"""The grids that tensors are rounded to, and what rounding does to them."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["E4M3_MAX", "Grid", "QuantizedWeight", "between", "symmetric"]

E4M3_MAX = 448.0
"""Largest finite float8 E4M3 (OCP 8-bit floating point specification)."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """How an activation tensor is quantized, per tensor: ``q = clip(round(x / step) + zero_point)``.

    Attributes:
        step: Distance of two integers (for float8: what 1.0 stands for), rounded to the precision scales are stored in.
        zero_point: Integer that stands for 0.0; 0 for symmetric grids.
        dtype: ``int8``, ``uint8`` or ``float8_e4m3fn``.
    """

    step: float
    zero_point: int = 0
    dtype: str = "int8"

    def apply(self, x: Floats) -> Floats:
        """Return ``x`` after quantizing and dequantizing, float32 of the same shape."""
        step = np.float32(self.step)
        scaled: Floats = x / step
        if self.dtype == "float8_e4m3fn":
            np.clip(scaled, -E4M3_MAX, E4M3_MAX, out=scaled)
            scaled = scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
            scaled *= step
            return scaled
        low = -128 if self.dtype == "int8" else 0
        np.rint(scaled, out=scaled)
        np.clip(scaled, low - self.zero_point, low + 255 - self.zero_point, out=scaled)
        scaled *= step
        return scaled


def symmetric(amax: float, dtype: str, *, half: bool = False) -> Grid:
    """Return the symmetric grid that reaches ``amax``.

    Args:
        amax: Largest magnitude that is not clipped.
        dtype: ``int8`` or ``float8_e4m3fn``; ``uint8`` puts zero at 128.
        half: Round the step to float16, where the runtime stores scales so.
    """
    step = max(amax, 1e-6) / (E4M3_MAX if dtype == "float8_e4m3fn" else 127.0)
    return Grid(_stored(step, half), 128 if dtype == "uint8" else 0, dtype)


def between(low: float, high: float, *, half: bool = False) -> Grid:
    """Return the uint8 grid over ``[low, high]`` (widened to hold 0) with 0.0 exactly on it."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = _stored(max(high - low, 1e-6) / 255, half)
    return Grid(step, int(np.clip(np.rint(-low / step), 0, 255)), "uint8")


def _stored(step: float, half: bool) -> float:
    return float(np.float16(max(step, 2.0**-14)) if half else np.float32(step))


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight quantized per output channel: ``w = (values - zero_point) * scale``.

    Attributes:
        values: int8, uint8 or float8 ``[K, N]``.
        scale: float32 ``[N]``.
        zero_point: Integer that stands for 0.0, the same for every channel.
    """

    values: NDArray[np.generic]
    scale: Floats
    zero_point: int = 0

    def dequantized(self) -> Floats:
        """Return float32 ``[K, N]``."""
        result: Floats = (self.values.astype(np.float32) - self.zero_point) * self.scale
        return result

    def scaled(self, gain: Floats) -> QuantizedWeight:
        """Return the weight whose output channels are multiplied by ``gain``, ``[N]``, at the same integers."""
        return QuantizedWeight(self.values, (self.scale * gain).astype(np.float32), self.zero_point)
