"""The difference of mAP is that of the two figures, and its standard error that of images drawn again."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vitexport.intervals import Z95
from vitexport.verification.paired_map import MapDifference, compare_map
from vitexport.verification.scores import average_precision


def mean_precision(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    present = np.flatnonzero(truth.any(axis=0))
    return float(np.mean([average_precision(scores[:, label], truth[:, label]) for label in present]))


@pytest.fixture(scope="module")
def answers() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    random = np.random.default_rng(3)
    truth = random.random((60, 4)) < (0.5, 0.3, 0.1, 0.0)
    first = np.round(random.normal(size=(60, 4)) + 2 * truth, 1)  # with ties
    return first, first + 0.5 * random.normal(size=(60, 4)), truth


def test_the_drop_and_its_standard_error_are_those_of_images_drawn_again(
    answers: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]],
) -> None:
    first, second, truth = answers
    found = compare_map(first, second, truth)
    assert found is not None
    assert found.drop_points == pytest.approx(100 * (mean_precision(first, truth) - mean_precision(second, truth)))
    random = np.random.default_rng(11)
    drawn = [random.integers(0, 60, 60) for _ in range(2000)]
    drops = [100 * (mean_precision(first[d], truth[d]) - mean_precision(second[d], truth[d])) for d in drawn]
    assert found.standard_error_points == pytest.approx(np.std(drops), rel=0.2)
    low, high = found.interval_points()
    assert (high - low) / 2 == pytest.approx(Z95 * found.standard_error_points)
    assert found.interval_points(4.0)[1] - found.drop_points == pytest.approx((high - low) / 4)


def test_no_difference_is_not_certainty(
    answers: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]],
) -> None:
    first, _, truth = answers
    found = compare_map(first, first, truth)
    assert found == MapDifference(60, 0.0, 0.0)
    assert found.interval_points()[1] == pytest.approx(100 * Z95**2 / (60 + Z95**2), abs=1e-4)


def test_images_without_any_label_have_no_map(
    answers: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]],
) -> None:
    first, second, truth = answers
    assert compare_map(first, second, np.zeros_like(truth)) is None
