"""Calibration statistics: of fixed size, exact, and the same however images come."""

import ast
import tracemalloc
import weakref

import numpy as np
import pytest
from PIL import Image

from vitexport.errors import CalibrationError
from vitexport.host.quantize.calibration import calibrate
from vitexport.host.quantize.calibration.covariance import StreamingCovariance, unpack_covariance
from vitexport.host.quantize.calibration.statistics import StatisticsConfig
from vitexport.host.quantize.calibration.streaming import BINS, EXTREME_ROWS, StreamingStatistics
from vitexport.inputs.images import batches, content_hashes
from vitexport.inputs.preprocess import PreprocessSpec, Resize
from vitexport.tensors import TensorSpec


def stream(images, **config):
    statistics = StreamingStatistics("x", images=len(images), config=StatisticsConfig(**config))
    for image in images:
        statistics.update(image)
    return statistics.result()


@pytest.fixture
def images():
    rng = np.random.default_rng(3)
    return [(rng.normal(size=(1, 50, 12)) * np.linspace(0.1, 4, 12)).astype(np.float32) for _ in range(9)]


def test_extremes_means_and_counts_are_those_of_all_values(images):
    stats, rows = stream(images), np.concatenate(images).reshape(-1, 12)
    np.testing.assert_array_equal(stats.minimum, rows.min(axis=0))
    np.testing.assert_array_equal(stats.maximum, rows.max(axis=0))
    np.testing.assert_allclose(stats.mean, rows.mean(axis=0), atol=1e-5)
    assert stats.histogram.sum() == rows.size
    expected, _ = np.histogram(rows, bins=BINS, range=(-stats.bound, stats.bound))
    assert np.abs(stats.histogram - expected).sum() <= 4  # values on an edge


def test_each_half_of_the_images_is_judged_by_the_rows_of_the_other(images):
    for index, image in enumerate(images):
        image += 100 * (index % 2)  # so that a row tells which half it is from
    folds = stream(images).folds(class_token=True)
    assert len(folds) == 2
    for index, fold in enumerate(folds):
        half = np.concatenate(images[index::2]).reshape(-1, 12)
        np.testing.assert_array_equal(fold.minimum, half.min(axis=0))
        np.testing.assert_array_equal(fold.maximum, half.max(axis=0))
        assert {bool(row.mean() > 50) for row in fold.rows} == {index == 0}
        assert fold.counts.sum() == pytest.approx(1)
        # What counts for much is all there: row 0 of every image.
        others = np.concatenate(images[1 - index :: 2])[:, 0]
        assert all((np.abs(fold.rows - row).max(axis=1) < 0.1).any() for row in others)


def test_one_image_is_judged_by_its_own_rows(images):
    (fold,) = stream(images[:1]).folds(class_token=False)
    np.testing.assert_array_equal(fold.minimum, images[0].reshape(-1, 12).min(axis=0))
    assert len(fold.rows) >= 50


def test_statistics_without_rows_know_what_is_known_of_channels(images):
    whole = stream(images)
    bare = whole.without_rows()
    np.testing.assert_array_equal(bare.maximum, whole.maximum)
    np.testing.assert_array_equal(bare.mean, whole.mean)
    assert bare.covariance() is None
    assert not len(bare.sample) and not len(bare.extremes)


def test_the_covariance_is_that_of_the_rows(images):
    rows = np.concatenate(images).reshape(-1, 12)
    covariance = stream(images, covariance_rows=10_000).covariance()
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), atol=2e-3 * rows.var(axis=0).max())


def test_the_covariance_of_many_channels_is_that_of_the_rows_too():
    rng = np.random.default_rng(4)
    rows = (rng.normal(size=(700, 150)) @ rng.normal(size=(150, 150)) + rng.normal(size=150)).astype(np.float32)
    one = StreamingCovariance(150)
    one.update(rows, np.ones(700, dtype=np.float32))
    np.testing.assert_allclose(
        unpack_covariance(*one.result()), np.cov(rows.T, bias=True), atol=1e-3 * rows.var(axis=0).max()
    )


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
    covariance = stream(images).covariance()
    assert not covariance[4].any()
    assert not covariance[:, 4].any()
    assert np.isfinite(covariance).all()


def test_what_is_not_asked_for_is_not_kept(images):
    stats = stream(images, covariance_rows=0, histogram=False)
    assert stats.covariance() is None
    assert not stats.histogram.any()


def test_sampled_rows_beyond_float16_are_kept_whole_and_the_others_to_its_precision(images):
    images[4][0, 0, 3] = 123457.0
    stats = stream(images, sample_rows=450)
    rows = np.concatenate(images).reshape(-1, 12)
    assert stats.sample.dtype == np.float32
    np.testing.assert_array_equal(stats.sample[200:], rows[200:])
    np.testing.assert_allclose(stats.sample[:200], rows[:200], rtol=1e-3, atol=1e-6)
    assert stats.extremes[0, 3] == 123457.0
    images[4][0, 0, 3] = 1.0
    assert stream(images, sample_rows=450).sample.dtype == np.float16


def test_the_extremes_are_the_rows_of_largest_magnitude(images):
    rows = np.concatenate(images).reshape(-1, 12)
    largest = rows[np.argsort(-np.abs(rows).max(axis=1), kind="stable")[:EXTREME_ROWS]]
    np.testing.assert_array_equal(stream(images).extremes, largest.astype(np.float16))


def test_memory_does_not_grow_with_the_number_of_images():
    def peak(count):
        rng = np.random.default_rng(5)
        tracemalloc.start()
        statistics = StreamingStatistics("x", images=count, config=StatisticsConfig())
        for _ in range(count):
            statistics.update(rng.normal(size=(1, 65, 96)).astype(np.float32))
        statistics.result()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)  # what the first call of all loads is no part of it
    few = peak(16)
    assert peak(128) <= 1.2 * few


@pytest.mark.parametrize("rows", [100, 1000])
def test_fewer_rows_say_less_about_how_far_others_reach(rows):
    """Sixteen thousand samples of a normal distribution reach about as far beyond a few as is expected of them."""
    rng = np.random.default_rng(1)
    few = stream([rng.normal(size=(1, rows, 400)).astype(np.float32)])
    many = np.mean([rng.normal(size=16384).max() for _ in range(400)])
    np.testing.assert_allclose(few.range_margin, many / few.maximum.mean(), rtol=0.12)
    assert few.range_margin > 1.1
    assert stream([np.ones((1, 20_000, 2), np.float32)]).range_margin == 1


def test_nan_is_refused(images):
    images[3][0, 1, 2] = np.nan
    with pytest.raises(CalibrationError, match="image 3"):
        stream(images)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_images_are_prepared_alike_and_known_by_their_pixels_however_many_are_decoded_at_once(tmp_path, dtype):
    rng = np.random.default_rng(6)
    paths = [tmp_path / f"{index}.png" for index in range(10)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    spec = PreprocessSpec(image_size=(8, 8), resize=Resize(mode="squash", size=(8, 8)), mean=(0, 0, 0), std=(1, 1, 1))
    tensor = TensorSpec("x", ("n", 3, 8, 8), dtype)
    expected = np.concatenate(list(batches(paths, spec, tensor, 4)))
    for size in (1, 7, 32):
        feeds = calibrate.ImageFeeds(paths, spec, tensor, tmp_path / str(size), batch_size=size)
        assert feeds.hashes == content_hashes(paths)
        read = np.concatenate([feeds.image(index) for index in range(10)])
        np.testing.assert_array_equal(read, expected)
        assert read.dtype == expected.dtype == dtype


def test_images_are_read_without_parsing_python(tmp_path, monkeypatch):
    """CPython 3.11 may fail to parse on two threads at once (python/cpython#106905): .npy headers do."""
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "image.png")
    spec = PreprocessSpec(image_size=(8, 8), resize=Resize(mode="squash", size=(8, 8)), mean=(0, 0, 0), std=(1, 1, 1))
    feeds = calibrate.ImageFeeds(
        [tmp_path / "image.png"], spec, TensorSpec("x", ("n", 3, 8, 8), "float32"), tmp_path / "feeds"
    )

    def refuse(*_args, **_kwargs):
        raise AssertionError("parsed Python")

    monkeypatch.setattr(ast, "literal_eval", refuse)
    np.testing.assert_allclose(feeds.image(0)[0, :, 0, 0], np.float32([10, 20, 30]) / 255, rtol=1e-6)


class Runtime:
    """Doubles its input; counts outputs that are not freed yet."""

    inputs = (type("Spec", (), {"name": "x", "shape": ("batch", 2)})(),)

    def __init__(self):
        self.alive = self.most = 0

    def run(self, feeds):
        output = feeds["x"] * 2
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(output, self.freed)
        return {"y": output}

    def freed(self):
        self.alive -= 1


class Feeds:
    def image(self, index):
        return np.full((1, 2), index, dtype=np.float32)


def test_images_come_back_in_order_from_any_number_of_cores(monkeypatch):
    for cores in (1, 2, 5):
        monkeypatch.setattr(calibrate, "usable_cores", lambda cores=cores: cores)
        outputs = list(calibrate.run_images(Runtime(), Feeds(), [4, 0, 9, 3]))
        assert [float(one["y"][0, 0]) for one in outputs] == [8, 0, 18, 6]


def test_what_runs_side_by_side_fits_the_memory_there_is_for_it(monkeypatch):
    monkeypatch.setattr(calibrate, "usable_cores", lambda: 6)
    most = []
    for room in (8, 8 * 5):
        monkeypatch.setattr(calibrate, "IN_FLIGHT_BYTES", room)
        runtime = Runtime()
        for outputs in calibrate.run_images(runtime, Feeds(), range(40)):
            outputs.pop("y")
            assert runtime.alive <= room // 8 + 1
        most.append(runtime.most)
    assert most[0] == 2
    assert 2 < most[1] <= 5
