"""Where values are centred for what rounded probabilities lose."""

from __future__ import annotations

import numpy as np
import pytest

from vitexport.host.quantize.planning.attention_scales import Moments, probability_qparams
from vitexport.host.quantize.scheme import QdqScheme

HEADS, TOKENS, CHANNELS = 2, 50, 3


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def rounded(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    return probability_qparams(QdqScheme(), threshold).fake_quantize(probabilities)


def with_a_sink(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of which every row spends half or more on token 0, whose value is always the same."""
    p = rng.dirichlet(np.ones(TOKENS), size=(HEADS, TOKENS))
    attended = rng.uniform(0.5, 0.9, size=(HEADS, TOKENS, 1))
    p *= 1 - attended
    p[..., 0] += attended[..., 0]
    v = rng.normal(size=(HEADS, TOKENS, CHANNELS))
    v[:, 0] = [3.0, -2.0, 5.0]
    return p.astype(np.float32), v.astype(np.float32)


def test_the_centre_is_the_one_of_least_squares(rng: np.random.Generator) -> None:
    error = Moments()
    lost, output, weights = [], [], rng.uniform(0.5, 2, TOKENS)
    for _ in range(3):
        p, v = with_a_sink(rng)
        change = rounded(p, 0.3) - p
        error.add(change, p @ v, v, weights)
        lost.append(change.sum(axis=2))
        output.append(change @ v)
    root = np.sqrt(np.tile(weights, 3))
    left = 0.0
    for head in range(HEADS):
        a = np.concatenate([one[head] for one in lost]) * root
        for channel in range(CHANNELS):
            b = np.concatenate([one[head, :, channel] for one in output]) * root
            solution, residual, _, _ = np.linalg.lstsq(a[:, None], b, rcond=None)
            centre = error.centre(np.zeros(HEADS * CHANNELS, np.float32)).reshape(HEADS, CHANNELS)
            np.testing.assert_allclose(centre[head, channel], solution[0], rtol=1e-4)
            left += float(residual[0])
    np.testing.assert_allclose(error.residual_error(np.ones(HEADS * CHANNELS, np.float32)), left, rtol=2e-3)


def test_a_token_that_all_rows_attend_to_may_be_clipped(rng: np.random.Generator) -> None:
    """A threshold below the sink has a finer scale for the rest, and the centre makes up for what it cuts off."""
    ones = np.ones(HEADS * CHANNELS, np.float32)
    weights = np.ones(TOKENS)
    errors = {threshold: Moments() for threshold in (1.0, 0.2)}
    for _ in range(4):
        p, v = with_a_sink(rng)
        for threshold, error in errors.items():
            error.add(rounded(p, threshold) - p, p @ v, v, weights)
    np.testing.assert_allclose(errors[0.2].centre(0 * ones)[:CHANNELS], [3.0, -2.0, 5.0], atol=0.1)
    assert errors[0.2].residual_error(ones) < 0.6 * errors[1.0].residual_error(ones)


def test_nothing_lost_leaves_the_mean() -> None:
    error = Moments()
    p = np.zeros((HEADS, TOKENS, TOKENS), np.float32)
    p[..., 0] = 1
    v = np.ones((HEADS, TOKENS, CHANNELS), np.float32)
    error.add(rounded(p, 1.0) - p, p @ v, v, np.ones(TOKENS))
    mean = np.arange(HEADS * CHANNELS, dtype=np.float32)
    np.testing.assert_array_equal(error.centre(mean), mean)


def test_the_gain_is_the_slope_of_each_head(rng: np.random.Generator) -> None:
    moments = Moments()
    p, v = with_a_sink(rng)
    moments.add(rounded(p, 0.6) - p, p @ v, v, np.ones(TOKENS))
    centre = moments.centre(np.zeros(HEADS * CHANNELS, np.float32))
    shifted = v - centre.reshape(HEADS, 1, CHANNELS)
    exact, inexact = p @ shifted, rounded(p, 0.6) @ shifted
    slopes = (exact * inexact).sum(axis=(1, 2)) / np.square(inexact).sum(axis=(1, 2))
    np.testing.assert_allclose(moments.gain(centre), np.repeat(slopes, CHANNELS), rtol=1e-4)
    assert np.abs(slopes - 1).max() > 1e-3
