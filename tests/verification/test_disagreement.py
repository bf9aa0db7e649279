"""The images that two variants disagree on most: other classes first, then by distance."""

from __future__ import annotations

import numpy as np
import pytest

from vitexport.bundle.recording import Recording
from vitexport.scoring import Head
from vitexport.tensors import Array
from vitexport.verification.disagreement import worst_images

REFERENCE = np.log([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25]]).astype(np.float32)
CANDIDATE = np.log([[0.5, 0.25, 0.25], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]).astype(np.float32)


def recording(outputs: dict[str, Array], images: str = "abcd") -> Recording:
    return Recording("test", tuple(images), tuple(images), outputs)


def test_another_class_comes_before_any_distance() -> None:
    found = worst_images(recording({"logits": REFERENCE}), recording({"logits": CANDIDATE}), (0, 0, 1, 2))
    assert [entry.image for entry in found] == ["d", "b", "a", "c"]
    assert [entry.same_decision for entry in found] == [False, False, True, True]
    assert [entry.target for entry in found] == [2, 0, 0, 1]
    first = found[0]
    assert (first.reference.index, first.candidate.index) == (0, 2)
    assert first.reference.score == pytest.approx(0.4, abs=1e-6)
    assert first.candidate.score == pytest.approx(0.6, abs=1e-6)
    # Total variation: half of |0.4 - 0.2| + |0.35 - 0.2| + |0.25 - 0.6|, and the third image is equal.
    assert first.distance == pytest.approx(0.35, abs=1e-6)
    assert found[-1].distance == 0


def test_as_many_as_asked_and_equal_ones_in_the_order_of_the_images() -> None:
    reference = recording({"logits": REFERENCE})
    assert [entry.image for entry in worst_images(reference, reference, count=2)] == ["a", "b"]
    assert len(worst_images(reference, recording({"logits": CANDIDATE}), count=99)) == 4


def test_targets_of_another_number_of_images_are_not_used() -> None:
    reference, candidate = recording({"logits": REFERENCE}), recording({"logits": CANDIDATE})
    for targets in (None, (1, 2)):
        assert {entry.target for entry in worst_images(reference, candidate, targets)} == {None}


def test_an_only_output_of_another_name_holds_the_classes() -> None:
    found = worst_images(recording({"scores": REFERENCE}), recording({"scores": CANDIDATE}))
    assert found[0].image == "d"


def test_large_logits_do_not_overflow() -> None:
    huge = np.array([[1e4, 0.0, 0.0]], np.float32)
    found = worst_images(recording({"logits": huge}, "a"), recording({"logits": huge[:, ::-1]}, "a"))
    assert found[0].distance == 1
    assert found[0].reference.score == 1


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (recording({"features": np.zeros((4, 3, 8))}), recording({"features": np.zeros((4, 3, 8))})),
        (recording({"logits": REFERENCE}), recording({"logits": CANDIDATE[:, :2]})),
        (recording({"logits": REFERENCE}), recording({"logits": CANDIDATE}, "abce")),
        (recording({"logits": REFERENCE}), recording({"logits": CANDIDATE * np.float32(np.nan)})),
        (recording({"logits": REFERENCE * np.float32(np.inf)}), recording({"logits": CANDIDATE})),
        (recording({"logits": REFERENCE}), recording({})),
    ],
    ids=["features", "other shape", "other images", "NaN", "infinity", "missing"],
)
def test_what_cannot_be_compared_has_no_worst_images(reference: Recording, candidate: Recording) -> None:
    assert worst_images(reference, candidate) == ()


def test_labels_are_named_where_the_two_differ_most() -> None:
    expected = np.array([[2.0, -2.0, 0.5], [1.0, 1.0, 1.0]], np.float32)
    found = np.array([[2.0, -1.0, -0.5], [1.1, 1.0, 1.0]], np.float32)
    recordings = recording({"logits": expected}, "ab"), recording({"logits": found}, "ab")
    first, second = worst_images(*recordings, ([0], [1]), head=Head(scoring="sigmoid"))
    assert (first.image, first.same_decision, first.target) == ("a", False, None)
    assert (first.reference.index, first.candidate.index) == (2, 2)
    assert first.reference.score == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert first.distance == pytest.approx(first.reference.score - first.candidate.score)
    assert (second.image, second.same_decision, second.reference.index) == ("b", True, 0)


def test_values_come_by_their_difference_alone() -> None:
    expected, found = np.array([[10.0], [20.0]], np.float32), np.array([[10.5], [17.0]], np.float32)
    recordings = recording({"logits": expected}, "ab"), recording({"logits": found}, "ab")
    worst = worst_images(*recordings, head=Head(scoring="none"))
    assert [(entry.image, entry.distance, entry.same_decision) for entry in worst] == [("b", 3, True), ("a", 0.5, True)]
    assert (worst[0].reference.score, worst[0].candidate.score) == (20, 17)
