"""Weights: range search, learned rounding, and kernels that add two products in 16 bits."""

import numpy as np
import pytest

from vitexport.host.quantize.numerics.weights import quantize_weight, round_to_nearest, saturating_pairs


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def correlated(rng, rows, channels):
    return (rng.normal(size=(rows, channels)) @ rng.normal(size=(channels, channels))).astype(np.float32)


def output_error(inputs, weight, quantized):
    return float(np.square(inputs @ (quantized.dequantized() - weight)).mean())


def test_learned_rounding_loses_less_on_inputs_it_has_not_seen(rng):
    mixing = rng.normal(size=(48, 48))
    seen, unseen = ((rng.normal(size=(2000, 48)) @ mixing).astype(np.float32) for _ in range(2))
    weight = rng.normal(size=(48, 40)).astype(np.float32)
    learned = quantize_weight(weight, "int8", variance=seen.var(axis=0), covariance=np.cov(seen.T))
    assert output_error(unseen, weight, learned) < 0.7 * output_error(unseen, weight, round_to_nearest(weight))


def test_a_range_is_clipped_where_that_lowers_the_output_error(rng):
    weight = rng.normal(size=(64, 8)).astype(np.float32)
    weight[0] = 12.0  # wide, on an input that hardly moves
    variance = np.ones(64, dtype=np.float32)
    variance[0] = 1e-4
    inputs = (rng.normal(size=(500, 64)) * np.sqrt(variance)).astype(np.float32)
    chosen = quantize_weight(weight, "int8", variance=variance)
    assert output_error(inputs, weight, chosen) < 0.8 * output_error(inputs, weight, round_to_nearest(weight))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("channels", [64, 65])
def test_neighbouring_products_never_overflow_below_the_ceilings(rng, learned, channels):
    inputs = correlated(rng, 400, channels)
    weight = (rng.normal(size=(channels, 32)) + 0.8).astype(np.float32)  # mostly of one sign: pairs add up
    ceilings = rng.integers(60, 256, size=channels)
    assert saturating_pairs(round_to_nearest(weight).values, ceilings) > 0
    covariance = np.cov(inputs.T) if learned else None
    quantized = quantize_weight(weight, "int8", variance=inputs.var(axis=0), covariance=covariance, ceilings=ceilings)
    assert saturating_pairs(quantized.values, ceilings) == 0
    relative = output_error(inputs, weight, quantized) / float(np.square(inputs @ weight).mean())
    assert relative < 1e-3


@pytest.mark.parametrize("learned", [False, True])
def test_room_for_pairs_costs_little(rng, learned):
    """A few large weights among ordinary ones: the whole channel's scale grows a little, no weight is moved far."""
    inputs = correlated(rng, 2000, 192)
    weight = (rng.normal(size=(192, 48)) * 0.3).astype(np.float32)
    weight[rng.integers(0, 192, 48), np.arange(48)] += 1.0
    statistics = {"variance": inputs.var(axis=0), "covariance": np.cov(inputs.T) if learned else None}
    free = quantize_weight(weight, "int8", **statistics)
    limited = quantize_weight(weight, "int8", **statistics, ceilings=np.full(192, 245))
    assert saturating_pairs(free.values, 245) > 0
    assert saturating_pairs(limited.values, 245) == 0
    assert output_error(inputs, weight, limited) < 2.5 * output_error(inputs, weight, free)


def test_inputs_that_stay_low_leave_their_weights_the_full_range(rng):
    weight = rng.normal(size=(64, 32)).astype(np.float32)
    low = quantize_weight(weight, "int8", ceilings=np.full(64, 100))
    high = quantize_weight(weight, "int8", ceilings=np.full(64, 255))
    ones = np.eye(64, dtype=np.float32)
    assert output_error(ones, weight, low) < output_error(ones, weight, high)


def test_a_channel_of_zeros_stays_zero():
    weight = np.zeros((16, 4), dtype=np.float32)
    quantized = quantize_weight(weight, "int8", variance=np.ones(16, np.float32), covariance=np.eye(16))
    assert not quantized.dequantized().any()
    assert np.isfinite(quantized.scale).all()
    assert (quantized.scale > 0).all()


def test_correlations_that_are_not_positive_definite_are_damped_until_they_are(rng):
    few = (rng.normal(size=(20, 4)) @ rng.normal(size=(4, 96)) * np.linspace(0.01, 30, 96)).astype(np.float32)
    covariance = np.cov(few.T)
    deviation = np.sqrt(np.diagonal(covariance))
    rounded = (covariance / np.outer(deviation, deviation)).astype(np.float16).astype(np.float64)
    covariance = 1.02 * rounded * np.outer(deviation, deviation)
    np.fill_diagonal(covariance, deviation**2)
    assert np.linalg.eigvalsh(covariance)[0] < -1e-3
    weight = rng.normal(size=(96, 16)).astype(np.float32)
    quantized = quantize_weight(
        weight, "int8", variance=np.diagonal(covariance).astype(np.float32), covariance=covariance
    )
    assert output_error(few, weight, quantized) < 1e-3 * float(np.square(few @ weight).mean())


def test_float8_weights_are_rounded_with_error_compensation_too(rng):
    mixing = rng.normal(size=(48, 48))
    seen, unseen = ((rng.normal(size=(2000, 48)) @ mixing).astype(np.float32) for _ in range(2))
    weight = rng.normal(size=(48, 40)).astype(np.float32)
    nearest = quantize_weight(weight, "float8_e4m3fn")
    phased = quantize_weight(weight, "float8_e4m3fn", variance=seen.var(axis=0))
    learned = quantize_weight(weight, "float8_e4m3fn", variance=seen.var(axis=0), covariance=np.cov(seen.T))
    errors = [output_error(unseen, weight, quantized) for quantized in (nearest, phased, learned)]
    assert errors[1] < 0.95 * errors[0]
    assert errors[2] < 0.7 * errors[0]
    assert learned.values.dtype.name == "float8_e4m3fn"
    assert np.isfinite(learned.dequantized()).all()
