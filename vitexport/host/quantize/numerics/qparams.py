"""Quantization parameters: scale, zero point and dtype of a tensor, and what rounding to them does."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BFLOAT16_MAX",
    "E4M3_MAX",
    "FLOAT16_MAX",
    "QuantParams",
    "QuantizedWeight",
    "asymmetric_qparams",
    "rounding_noise",
    "symmetric_qparams",
]

E4M3_MAX = 448.0
"""Largest finite float8 E4M3 (OCP 8-bit floating point specification)."""

FLOAT16_MAX = 65504.0
"""Largest finite float16 (IEEE 754-2008 binary16)."""

BFLOAT16_MAX = 3.3895e38
"""Largest finite bfloat16, rounded down."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class QuantParams:
    """How an activation tensor is quantized, per tensor: ``q = clip(round(x / scale) + zero_point)``.

    Attributes:
        scale: What one integer (for float8: 1.0) stands for, rounded to the precision scales are stored in.
        zero_point: Integer that stands for 0.0; 0 for symmetric quantization.
        dtype: ``int8``, ``uint8`` or ``float8_e4m3fn``.
    """

    scale: float
    zero_point: int = 0
    dtype: str = "int8"

    def fake_quantize(self, x: Floats) -> Floats:
        """Return ``x`` after quantizing and dequantizing, float32 of the same shape."""
        scale = np.float32(self.scale)
        scaled: Floats = x / scale
        if self.dtype == "float8_e4m3fn":
            np.clip(scaled, -E4M3_MAX, E4M3_MAX, out=scaled)
            scaled = scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
            scaled *= scale
            return scaled
        low = -128 if self.dtype == "int8" else 0
        np.rint(scaled, out=scaled)
        np.clip(scaled, low - self.zero_point, low + 255 - self.zero_point, out=scaled)
        scaled *= scale
        return scaled

    def noise_variance(self, mean_square: Floats) -> Floats:
        """Return the variance of what rounding adds to each channel, clipping aside, ``[K]``.

        Args:
            mean_square: Of each channel, ``[K]``.
        """
        if self.dtype == "float8_e4m3fn":
            noise: Floats = mean_square * np.float32(rounding_noise(4))
            return noise
        return np.full_like(mean_square, self.scale**2 / 12)


def rounding_noise(bits: int) -> float:
    """Return the variance of what rounding to a float of so many significant bits loses, over the square of the number.

    Numbers in a binade ``[2^e, 2^(e+1))`` have the mean square ``7/3 * 4^e``, and rounding them to p bits loses
    ``(2^(e+1-p))^2 / 12`` on average.
    """
    return 4.0 ** (1 - bits) / 28


def symmetric_qparams(amax: float, dtype: str, *, float16_scale: bool = False) -> QuantParams:
    """Return symmetric parameters under which nothing up to ``amax`` is clipped.

    Args:
        amax: Largest magnitude that is not clipped.
        dtype: ``int8`` or ``float8_e4m3fn``; ``uint8`` puts zero at 128.
        float16_scale: Round the scale to float16, where the runtime stores scales so.
    """
    scale = max(amax, 1e-6) / (E4M3_MAX if dtype == "float8_e4m3fn" else 127.0)
    return QuantParams(_stored(scale, float16_scale), 128 if dtype == "uint8" else 0, dtype)


def asymmetric_qparams(low: float, high: float, *, float16_scale: bool = False) -> QuantParams:
    """Return uint8 parameters over ``[low, high]`` (widened to hold 0) that represent 0.0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = _stored(max(high - low, 1e-6) / 255, float16_scale)
    return QuantParams(scale, int(np.clip(np.rint(-low / scale), 0, 255)), "uint8")


def _stored(scale: float, float16_scale: bool) -> float:
    return float(np.float16(max(scale, 2.0**-14)) if float16_scale else np.float32(scale))


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
