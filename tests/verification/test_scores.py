"""Scores of labels and values, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vitexport.scoring import Head
from vitexport.verification.accuracy import Accuracy
from vitexport.verification.scores import LabelScores, ValueScores, average_precision, score_answers

LABELS = Head(scoring="sigmoid")


def test_average_precision_is_the_area_under_the_steps() -> None:
    # Ranked 0.8, 0.4, 0.35, 0.1 with truth 1, 0, 1, 0: precision 1 at recall 1/2, then 2/3 at recall 1.
    scores, truth = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert average_precision(scores, truth) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_images_of_equal_score_are_ranked_together() -> None:
    truth = np.array([True, False, False, True])
    assert average_precision(np.zeros(4), truth) == pytest.approx(0.5)
    assert average_precision(np.zeros(4), truth[::-1].copy()) == pytest.approx(0.5)


def test_labels_are_scored_at_the_threshold_and_by_their_ranking() -> None:
    logits = np.array([[2.0, -1.0, -3.0], [1.0, 3.0, -3.0], [-1.0, 0.5, -3.0], [-2.0, -2.0, -3.0]])
    targets = [(0,), (0, 1), (), (1,)]
    # At 0: label 0 hits twice; label 1 hits once, gives one wrongly and misses one; label 2 is nowhere.
    found = score_answers(logits, targets, LABELS)
    assert isinstance(found, LabelScores)
    assert found.micro_f1 == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert found.macro_f1 == pytest.approx((1 + 2 * 1 / (2 * 1 + 1 + 1) + 0) / 3)
    assert found.exact == pytest.approx(2 / 4)
    # Label 1, ranked 3.0, 0.5, -1.0, -2.0 with truth 1, 0, 0, 1.
    assert found.mean_average_precision == pytest.approx((1 + (0.5 * 1 + 0.5 * 2 / 4)) / 2)


def test_a_threshold_changes_the_decisions_and_not_the_ranking() -> None:
    logits, targets = np.array([[0.5], [2.5], [-1.0]]), [(), (0,), ()]
    loose, strict = (score_answers(logits, targets, Head(scoring="sigmoid", threshold=t)) for t in (0.5, 0.9))
    assert isinstance(loose, LabelScores) and isinstance(strict, LabelScores)
    assert (loose.micro_f1, strict.micro_f1) == (pytest.approx(2 / 3), 1)
    assert loose.mean_average_precision == strict.mean_average_precision == 1


def test_values_are_scored_by_their_error() -> None:
    found = score_answers(np.array([[1.0], [2.0], [6.0]]), [1.0, 3.0, 4.0], Head(scoring="none"))
    assert isinstance(found, ValueScores)
    assert found.mean_abs == pytest.approx(1)
    assert found.rms == pytest.approx((5 / 3) ** 0.5)
    assert found.correlation == pytest.approx(np.corrcoef([1, 3, 4], [1, 2, 6])[0, 1])


def test_classes_are_scored_as_ever() -> None:
    found = score_answers(np.array([[1.0, 2.0], [3.0, 1.0]]), [1, 1], Head())
    assert found == Accuracy(images=2, top1=0.5, top5=1.0)
