"""Intervals against published values, and the number of images that would decide."""

from __future__ import annotations

import math

import pytest

from vitexport.intervals import Z95, correlation, images_to_decide, paired_difference, proportion


def test_wilsons_interval_of_a_fraction() -> None:
    assert proportion(1.0, 32) == pytest.approx((0.8928, 1.0), abs=1e-4)
    # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I: 81 of 263, and 0 of 20.
    assert proportion(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert proportion(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


def test_tangos_interval_of_a_paired_difference() -> None:
    # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014), 2850-2875: airway hyper-responsiveness before and
    # after transplantation, 1 and 7 discordant of 21.
    assert paired_difference(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_fishers_interval_of_a_correlation() -> None:
    # What scipy.stats.pearsonr gives as confidence_interval() for r = 0.5 over 28 pairs.
    assert correlation(0.5, 28) == pytest.approx((0.156028, 0.735818), abs=1e-6)
    assert correlation(0.9, 3) == (-1, 1)
    low, high = correlation(1.0, 50)
    assert 0.999 < low < high <= 1
    assert correlation(-0.5, 28) == pytest.approx((-0.735818, -0.156028), abs=1e-6)


@pytest.mark.parametrize("count", [1, 32, 384, 50_000])
def test_no_image_judged_differently_is_not_certainty(count: int) -> None:
    wide = Z95**2 / (count + Z95**2)
    assert paired_difference(0, 0, count) == pytest.approx((-wide, wide), abs=1e-6)


@pytest.mark.parametrize(("lost", "gained", "count"), [(5, 2, 100), (0, 3, 40), (384, 0, 384), (7, 7, 20), (1, 0, 1)])
def test_the_interval_holds_the_figure_stays_within_bounds_and_mirrors(lost: int, gained: int, count: int) -> None:
    low, high = paired_difference(lost, gained, count)
    assert -1 <= low <= (lost - gained) / count <= high <= 1
    assert paired_difference(gained, lost, count) == pytest.approx((-high, -low), abs=1e-6)


def test_how_many_images_decide() -> None:
    needed = images_to_decide(lambda times: paired_difference(0, 0, 32 * times), 0.005, 32)
    exact = Z95**2 * (1 - 0.005) / 0.005
    assert needed is not None and exact <= needed <= 1.02 * exact + 10
    rising = images_to_decide(lambda times: paired_difference(2 * times, times, 384 * times), 0.005, 384)
    assert rising is not None
    low, high = paired_difference(2 * rising / 384, rising / 384, rising)
    assert not low <= 0.005 <= high
    assert images_to_decide(lambda times: proportion(0.5, round(100 * times)), 0.5, 100) is None
    assert images_to_decide(lambda times: proportion(0.5, round(100 * times)), 0.9, 100) == 100
    assert math.isfinite(needed)
