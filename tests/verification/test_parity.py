from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitexport.bundle.recording import Recording, ReplayInputs, input_hashes
from vitexport.errors import BundleError
from vitexport.recipe.settings import Tolerance
from vitexport.scoring import Head
from vitexport.tensors import Array
from vitexport.verification.parity import compare, measure

STRICT = Tolerance(max_abs=1e-4, min_cosine=0.999, min_sqnr_db=40, min_agreement=1.0)
LOGITS = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 0.5]], np.float32)


def recording(hashes: tuple[str, ...] = ("h1", "h2"), **outputs: Array) -> Recording:
    return Recording("test", ("a.png", "b.png")[: len(hashes)], hashes, outputs)


def test_metrics_of_a_known_difference() -> None:
    found = measure("logits", np.array([[3.0, 4.0], [0.0, 10.0]]), np.array([[3.0, 4.0], [1.0, 10.0]]), Head())
    assert found.max_abs == 1
    assert found.max_rel == pytest.approx(0.1)
    assert found.rms_rel == pytest.approx((1 / 125) ** 0.5)
    assert found.sqnr_db == pytest.approx(10 * np.log10(125))
    assert found.min_cosine == pytest.approx(10 / 101**0.5)
    assert found.mean_abs == pytest.approx(0.25)
    assert found.agreement == 1
    assert found.worst_image == 1


def test_top5_agreement_is_the_share_of_common_classes_in_any_order() -> None:
    scores = np.array([[9.0, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7]])
    other = np.array([[5.0, 6, 7, 8, 9, 4, 3], [7, 6, 3, 4, 5, 1, 2]])  # the same five; three in common
    found = measure("logits", scores, other, Head())
    assert found.agreement == 0
    assert found.agreement_top5 == pytest.approx((5 / 5 + 3 / 5) / 2)
    assert measure("logits", scores, scores, Head()).agreement_top5 == 1
    assert measure("logits", LOGITS, LOGITS, Head()).agreement_top5 is None
    assert measure("features", np.ones((2, 3, 8)), np.ones((2, 3, 8))).agreement_top5 is None


def test_the_summary_shows_the_logits_whatever_comes_first() -> None:
    outputs = {"features": LOGITS, "logits": LOGITS}
    report = compare(recording(**outputs), recording(**outputs), STRICT)
    assert report.main is not None and report.main.name == "logits"


def test_equal_outputs_pass() -> None:
    report = compare(recording(logits=LOGITS), recording(logits=LOGITS.copy()), STRICT)
    assert report.passed
    assert report.unchecked == ("max_rel", "min_correlation")
    assert report.main is not None and report.main.sqnr_db == float("inf")


@pytest.mark.parametrize(
    ("candidate", "failure"),
    [
        ({}, "'logits' is missing"),
        ({"scores": LOGITS}, "'logits' is missing; found scores instead"),
        ({"logits": LOGITS[:, :2]}, r"shape \[2, 2\], expected \[2, 3\]"),
        ({"logits": np.where(LOGITS == 2, np.nan, LOGITS)}, "NaN or infinity on 1 of 2"),
        ({"logits": np.where(LOGITS == 2, np.inf, LOGITS)}, "NaN or infinity on 1 of 2"),
        ({"logits": LOGITS + np.float32(0.01)}, "max abs error 0.01 is above 0.0001"),
        ({"logits": LOGITS[:, ::-1]}, "agreement 0 is below 1"),
        ({"logits": LOGITS, "extra": LOGITS}, "unexpected output 'extra'"),
        ({"logits": np.zeros_like(LOGITS)}, "cosine 0 is below"),
    ],
)
def test_every_breach_is_a_failure_that_says_what(candidate: dict[str, Array], failure: str) -> None:
    report = compare(recording(logits=LOGITS), recording(**candidate), STRICT)
    assert not report.passed
    assert any(failure.replace("\\", "") in line for line in report.failures), report.failures


def test_other_inputs_fail_even_with_equal_outputs() -> None:
    report = compare(recording(logits=LOGITS), recording(("h1", "x"), logits=LOGITS), STRICT)
    assert report.failures == ("other input tensors on 1 of 2 images, first 'b.png': the preprocessing differs",)
    assert compare(recording(logits=LOGITS), recording(("h1", "x"), logits=LOGITS), STRICT, same_inputs=False).passed


def test_no_images_never_pass() -> None:
    empty = recording((), logits=LOGITS[:0])
    assert not compare(empty, empty, Tolerance()).passed


def test_agreement_on_features_is_unchecked_not_passed() -> None:
    features = recording(last_hidden_state=np.ones((2, 5, 4), np.float32))
    report = compare(features, features, Tolerance(min_agreement=1))
    assert "min_agreement" in report.unchecked


def test_a_recording_survives_the_disk_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    original = recording(logits=LOGITS)
    original.save(tmp_path / "r.npz")
    loaded = Recording.load(tmp_path / "r.npz")
    assert loaded.images == original.images and loaded.input_sha256 == original.input_sha256
    np.testing.assert_array_equal(loaded.outputs["logits"], LOGITS)
    chosen = loaded.select(["b.png", "absent"])
    assert chosen.images == ("b.png",)
    np.testing.assert_array_equal(chosen.outputs["logits"], LOGITS[1:])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "r.npz").read_bytes()[:100])
    for name in ("cut.npz", "absent.npz"):
        with pytest.raises(BundleError, match="Expected a recording"):
            Recording.load(tmp_path / name)


def test_a_recording_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", header=np.array({"a": 1}, dtype=object))
    with pytest.raises(BundleError, match="allow_pickle"):
        Recording.load(tmp_path / "evil.npz")


def test_replay_inputs_survive_the_disk(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    ReplayInputs(("a", "b"), pixels, (1, 0)).save(tmp_path / "i.npz")
    loaded = ReplayInputs.load(tmp_path / "i.npz")
    assert loaded.images == ("a", "b") and loaded.targets == (1, 0)
    np.testing.assert_array_equal(loaded.pixels, pixels)


def test_input_hashes_see_dtype_shape_and_content() -> None:
    rows = np.zeros((2, 4), np.float32)
    rows[1, 0] = 1
    first, second = input_hashes(rows)
    assert first != second
    assert input_hashes(rows.astype(np.float16))[0] != first
    assert input_hashes(rows.reshape(2, 2, 2))[0] != first


def test_labels_agree_one_by_one_at_the_threshold() -> None:
    labels = Head(scoring="sigmoid")
    expected, found = np.array([[2.0, -1.0, 0.1], [-3.0, -0.2, 5.0]]), np.array([[9.0, -2.0, -0.1], [-1.0, 0.2, 5.0]])
    assert measure("logits", expected, found, labels).agreement == pytest.approx(4 / 6)
    strict = Head(scoring="sigmoid", threshold=0.9)  # a logit of 2.197
    assert measure("logits", expected, found, strict).agreement == pytest.approx(5 / 6)
    assert measure("logits", expected, found, labels).agreement_top5 is None


def test_one_number_per_image_has_an_agreement_but_no_direction() -> None:
    one = measure("logits", np.array([[0.01], [3.0]]), np.array([[-0.01], [3.0]]), Head(scoring="sigmoid"))
    assert (one.agreement, one.min_cosine, one.correlation) == (0.5, None, None)
    single = recording(logits=np.array([[0.01], [3.0]]))
    report = compare(single, single, Tolerance(min_cosine=0.9, min_agreement=1), head=Head(scoring="sigmoid"))
    assert report.passed
    assert "min_cosine" in report.unchecked


def test_values_of_a_regression_are_held_to_their_correlation() -> None:
    head = Head(scoring="none")
    expected = np.array([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]])
    found = np.array([[1.5, 11.0], [2.5, 29.0], [3.5, 20.0]])
    result = measure("logits", expected, found, head)
    assert result.agreement is None
    assert result.mean_abs == pytest.approx((3 * 0.5 + 2) / 6)
    assert result.correlation == pytest.approx(np.corrcoef(expected[:, 1], found[:, 1])[0, 1])  # the first is 1
    assert measure("logits", expected, np.ones_like(expected), head).correlation == 0
    assert measure("logits", expected[:2], found[:2], head).correlation is None
    three = Recording("test", ("a", "b", "c"), ("1", "2", "3"), {"logits": expected})
    constant = Recording("test", ("a", "b", "c"), ("1", "2", "3"), {"logits": np.ones_like(expected)})
    report = compare(three, constant, Tolerance(min_correlation=0.95), head=head)
    assert "correlation 0 is below 0.95" in report.failures[0]


def test_a_segmentation_agrees_place_by_place_and_features_do_not_decide() -> None:
    maps = np.zeros((1, 2, 2, 2))
    other = maps.copy()
    maps[0, 1, 0, 0] = other[0, 1, 0, 0] = other[0, 1, 1, 1] = 1.0
    assert measure("logits", maps, other, Head("segment")).agreement == 0.75
    vectors = recording(pooler_output=LOGITS)
    report = compare(vectors, vectors, Tolerance(min_agreement=1), head=Head("features"))
    assert report.main is not None
    assert report.main.agreement is None
    assert "min_agreement" in report.unchecked
