from __future__ import annotations

import numpy as np
import pytest

from vitexport.verification.accuracy import accuracy, compare_top1


def one_hot(classes: list[int], count: int = 10) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[classes]


def test_top1_and_top5() -> None:
    logits = np.array([[9, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, 6]], np.float32)
    found = accuracy(logits, [4, 5])
    assert (found.images, found.top1, found.top5) == (2, 0.5, 1.0)
    assert accuracy(logits, [5, 0]).top5 == 0.0


def test_mcnemar_counts_only_disagreements() -> None:
    truth = [0] * 20
    reference = one_hot([0] * 19 + [1])
    candidate = one_hot([1] * 8 + [0] * 12)
    found = compare_top1(reference, candidate, truth)
    assert (found.only_reference, found.only_candidate) == (8, 1)
    assert found.drop_points == pytest.approx(35)
    # Two-sided binomial: 2 * (C(9,0) + C(9,1)) / 2^9
    assert found.p_value == pytest.approx(2 * 10 / 512)
    low, high = found.interval_points
    assert low < 35 < high


def test_no_disagreement_is_no_evidence() -> None:
    same = one_hot([0, 1, 2])
    found = compare_top1(same, same, [0, 1, 1])
    assert found.drop_points == 0 and found.p_value == 1
    low, high = found.interval_points
    assert -60 < low < -50 and 50 < high < 60  # three images tell next to nothing
