"""Telling an exact transform of a tensor from noise when there are few rows to tell it by."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vitexport.host.diagnose.coordinates import match_channels

CHANNELS, OUTPUTS = 48, 64


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 64])
def test_a_scale_that_the_weights_undo_is_found_however_few_rows_show_it(rows: int) -> None:
    """Rows much alike, as class tokens are: the noise of 8 bits is as large as what tells them apart."""
    for seed, spread in itertools.product(range(10), (0.0, 0.02, 1.0)):
        random = np.random.default_rng(seed)
        scale, shift = random.uniform(0.4, 2.5, CHANNELS), random.normal(size=CHANNELS)
        weight, bias = random.normal(size=(CHANNELS, OUTPUTS)), random.normal(size=OUTPUTS)
        reference = random.normal(size=CHANNELS) + spread * random.normal(size=(rows, CHANNELS))
        candidate = reference * scale + shift + 0.02 * random.normal(size=(rows, CHANNELS))
        after, moved = weight / scale[:, None], bias - (shift / scale) @ weight
        found = match_channels(reference, candidate, (weight, after), (bias, moved))
        assert found is not None
        assert found.scale == pytest.approx(scale, rel=0.05)
        assert found.shift == pytest.approx(shift, abs=0.2)


def test_a_channel_that_changed_without_the_weights_is_not_taken_for_a_transform() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(CHANNELS, OUTPUTS))
    reference = random.normal(size=(64, CHANNELS))
    candidate = reference.copy()
    candidate[:, 7] *= 4
    found = match_channels(reference, candidate, (weight, weight), None)
    assert found is None or found.scale[7] == pytest.approx(1)
