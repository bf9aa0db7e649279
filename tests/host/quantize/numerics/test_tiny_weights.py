"""Channels of tiny weights, as a folded LayerScale leaves them, keep a scale that float16 can hold."""

from __future__ import annotations

import numpy as np
import pytest

from vitexport.host.quantize.numerics.weights import quantize_weight, round_to_nearest


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5, 1e-7, 1e-12, 0.0])
def test_scales_survive_float16_and_the_error_stays_that_of_rounding(size: float, dtype: str) -> None:
    random = np.random.default_rng(0)
    weight = (random.normal(size=(32, 6)) * size).astype(np.float32)
    quantized = quantize_weight(weight, dtype, variance=np.ones(32, np.float32))
    stored = quantized.scale.astype(np.float16)
    assert (stored > 0).all()
    tiny = quantized.scale < 2.0**-14
    np.testing.assert_array_equal(stored[tiny].astype(np.float32), quantized.scale[tiny])
    error = np.abs(quantized.values.astype(np.float32) * stored.astype(np.float32) - weight).max()
    smallest = 2.0**-24 if dtype == "int8" else 2.0**-24 * 16
    assert error <= max(0.1 * np.abs(weight).max(), smallest)


def test_nearest_rounding_does_the_same() -> None:
    weight = np.array([[3e-9, 0.5], [-2e-9, 0.25]], dtype=np.float32)
    quantized = round_to_nearest(weight)
    assert (quantized.scale.astype(np.float16) > 0).all()
    np.testing.assert_allclose(quantized.dequantized()[:, 1], weight[:, 1], atol=0.5 / 254)
