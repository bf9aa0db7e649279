"""Calibration statistics: of fixed size, exact, and the same however images come."""

import numpy as np
import pytest

from vitexport.errors import CalibrationError
from vitexport.host.quantize import calibrate
from vitexport.host.quantize.covariance import StreamingCovariance, unpack_covariance
from vitexport.host.quantize.statistics import BINS, Kept, StreamingStatistics


def stream(images, **kept):
    statistics = StreamingStatistics("x", images=len(images), kept=Kept(**kept))
    for image in images:
        statistics.update(image)
    return statistics.result()


@pytest.fixture
def images():
    rng = np.random.default_rng(3)
    return [(rng.normal(size=(1, 50, 12)) * np.linspace(0.1, 4, 12)).astype(np.float32) for _ in range(9)]


def test_extremes_means_and_counts_are_those_of_all_values(images):
    found, rows = stream(images), np.concatenate(images).reshape(-1, 12)
    np.testing.assert_array_equal(found.minimum, rows.min(axis=0))
    np.testing.assert_array_equal(found.maximum, rows.max(axis=0))
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-5)
    assert found.histogram.sum() == rows.size
    expected, _ = np.histogram(rows, bins=BINS, range=(-found.bound, found.bound))
    assert np.abs(found.histogram - expected).sum() <= 4  # values on an edge


def test_the_covariance_is_that_of_the_rows(images):
    rows = np.concatenate(images).reshape(-1, 12)
    found = stream(images, covariance_rows=10_000).covariance()
    np.testing.assert_allclose(found, np.cov(rows.T, bias=True), atol=2e-3 * rows.var(axis=0).max())


def test_the_covariance_does_not_depend_on_how_rows_arrive(images):
    rows, weights = np.concatenate(images).reshape(-1, 12), np.linspace(1, 2, 450, dtype=np.float32)
    results = []
    for size in (1, 7, 450):
        one = StreamingCovariance(12)
        for start in range(0, len(rows), size):
            one.update(rows[start : start + size], weights[start : start + size])
        results.append(unpack_covariance(*one.result()))
    for other in results[1:]:
        np.testing.assert_allclose(results[0], other, rtol=2e-3, atol=1e-4)


def test_a_channel_that_never_moves_has_no_covariance(images):
    for image in images:
        image[..., 4] = 2.5
    found = stream(images).covariance()
    assert not found[4].any()
    assert not found[:, 4].any()
    assert np.isfinite(found).all()


def test_what_is_not_asked_for_is_not_kept(images):
    found = stream(images, covariance_rows=0, histogram=False)
    assert found.covariance() is None
    assert not found.histogram.any()


def test_nan_is_refused(images):
    images[3][0, 1, 2] = np.nan
    with pytest.raises(CalibrationError, match="image 3"):
        stream(images)


def test_images_come_back_in_order_from_any_number_of_cores(monkeypatch):
    class Runtime:
        inputs = (type("Spec", (), {"name": "x", "shape": ("batch", 2)})(),)

        def run(self, feeds):
            return {"y": feeds["x"] * 2}

    class Feeds:
        def image(self, index):
            return np.full((1, 2), index, dtype=np.float32)

    for cores in (1, 2, 5):
        monkeypatch.setattr(calibrate, "usable_cores", lambda cores=cores: cores)
        outputs = list(calibrate.run_images(Runtime(), Feeds(), [4, 0, 9, 3]))
        assert [float(one["y"][0, 0]) for one in outputs] == [8, 0, 18, 6]
