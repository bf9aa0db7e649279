"""Scales for massive activations: which channels get one, how much, and that none is inexact."""

from __future__ import annotations

import numpy as np

from vitexport.host.quantize.planning.search import Consumer
from vitexport.host.quantize.planning.taming import MASSIVE, massive_channels, taming_scales


def consumers(rows: np.ndarray) -> list[Consumer]:
    weight = np.random.default_rng(0).choice([-1, 1], (len(rows), 24)) * rows[:, None]
    return [Consumer(weight.astype(np.float32), np.ones(24, dtype=np.float32))]


def test_nothing_is_scaled_where_no_channel_is_massive() -> None:
    reach = np.ones(32, dtype=np.float32)
    reach[3] = MASSIVE - 1
    assert taming_scales(reach, consumers(np.ones(32))) == []
    assert taming_scales(np.zeros(32, dtype=np.float32), consumers(np.ones(32))) == []
    assert not massive_channels(np.zeros(32, dtype=np.float32)).any()


def test_massive_channels_alone_are_scaled_by_powers_of_two() -> None:
    reach = np.ones(32, dtype=np.float32)
    reach[[3, 20]] = 100, 1000
    for scale in taming_scales(reach, consumers(np.ones(32))):
        assert set(np.flatnonzero(scale != 1)) == {3, 20}
        assert scale[20] > scale[3] > 1
        np.testing.assert_array_equal(np.exp2(np.rint(np.log2(scale))), scale)


def test_a_channel_whose_weights_are_as_small_as_it_is_large_is_scaled_back_whole() -> None:
    reach, rows = np.ones(32, dtype=np.float32), np.ones(32)
    reach[3], rows[3] = 128, 1 / 128
    assert [scale[3] for scale in taming_scales(reach, consumers(rows))] == [128] * 3
