"""The errors of an attention's two products are those that the quantized products make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from vitexport.host.quantize.numerics.qparams import symmetric_qparams
from vitexport.host.quantize.planning.attention import AttentionPlan
from vitexport.host.quantize.planning.attention_noise import AttentionInputs, context_error, scores_error

HEADS, TOKENS, WIDTH = 2, 40, 8
Floats = NDArray[np.float32]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def planned(rng: np.random.Generator, *, rows: bool) -> AttentionPlan:
    def channels(low: float, high: float) -> Floats:
        return rng.uniform(low, high, HEADS * WIDTH).astype(np.float32)

    fine = symmetric_qparams(8.0, "int8")
    ones = np.ones(HEADS * WIDTH, np.float32)
    return AttentionPlan(
        "a",
        0,
        rows,
        fine,
        fine,
        symmetric_qparams(1.0, "int8"),
        fine,
        channels(0.5, 2),
        channels(0.5, 2),
        channels(-0.5, 0.5),
        channels(0.5, 2),
        channels(-0.5, 0.5),
        ones,
        1.0,
    )


def inputs(rng: np.random.Generator, *, peak: float) -> AttentionInputs:
    """Random queries, keys and values, and rows of probabilities whose largest is ``peak``."""
    q, k, v = (rng.normal(size=(1, HEADS, TOKENS, WIDTH)).astype(np.float32) for _ in range(3))
    p = rng.uniform(0.2, 1, size=(1, HEADS, TOKENS, TOKENS)).astype(np.float32)
    return AttentionInputs(q, k.swapaxes(2, 3), peak * p / p.max(axis=-1, keepdims=True), v)


def test_a_row_of_small_probabilities_keeps_its_relative_precision(rng: np.random.Generator) -> None:
    """Rounded as they are, probabilities up to 0.01 all become 0 or 1/127; divided by 0.01, they have 127 steps."""
    given = replace(inputs(rng, peak=0.01), value=np.ones((1, HEADS, TOKENS, WIDTH), np.float32))
    exact = 0.01 * (given.probabilities / 0.01).sum(axis=-1)
    relative = {}
    for rows in (False, True):
        plan = planned(rng, rows=rows)
        ones = np.ones_like(plan.gain)
        plan = replace(plan, value=symmetric_qparams(1.0, "int8"), value_scale=ones, value_shift=0 * ones)
        relative[rows] = float((np.abs(context_error(plan, given)[..., 0]) / exact).max())
    assert relative[True] < 0.5 / 127 / 0.2
    assert relative[False] > 10 * relative[True]


@pytest.mark.parametrize("rows", [False, True])
def test_the_context_error_is_that_of_rounded_operands(rng: np.random.Generator, *, rows: bool) -> None:
    plan, given = planned(rng, rows=rows), inputs(rng, peak=0.3)
    scale, shift = (one.reshape(HEADS, 1, WIDTH) for one in (plan.value_scale, plan.value_shift))
    factor = given.probabilities.max(axis=-1, keepdims=True) if rows else 1.0
    rounded = plan.probabilities.fake_quantize(given.probabilities / factor) * factor
    value = plan.value.fake_quantize((given.value - shift) / scale)
    # The next layer adds the shift back for probabilities that sum to what the float ones do.
    restored = scale * (rounded @ value) + shift * given.probabilities.sum(axis=-1, keepdims=True)
    error = restored - given.probabilities @ given.value
    np.testing.assert_allclose(context_error(plan, given), error, atol=1e-4)


def test_the_scores_error_leaves_out_what_softmax_cannot_see(rng: np.random.Generator) -> None:
    plan, given = planned(rng, rows=True), inputs(rng, peak=0.3)
    plan = replace(plan, key_scale=(1 / plan.query_scale).astype(np.float32))
    query = plan.query.fake_quantize(given.query * plan.query_scale.reshape(HEADS, 1, WIDTH))
    key = given.key * plan.key_scale.reshape(HEADS, WIDTH, 1) + plan.key_offset.reshape(HEADS, WIDTH, 1)
    difference = query @ plan.key.fake_quantize(key) - given.query @ given.key
    error = scores_error(plan, given)
    # What remains is the same for every key of a row.
    np.testing.assert_allclose(np.ptp(difference - error, axis=-1), 0, atol=1e-4)
    assert np.abs(error).max() > 1e-3
