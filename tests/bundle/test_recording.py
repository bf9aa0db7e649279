"""What travels with a bundle: recorded outputs, and the pixels from which any machine makes the same inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitexport.bundle.recording import Recording, ReplayInputs, input_hashes
from vitexport.errors import BundleError
from vitexport.inputs.preprocess import PreprocessSpec, Resize, normalize
from vitexport.tensors import TensorSpec

SPEC = PreprocessSpec(image_size=(4, 4), resize=Resize(size=(4, 4)), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
FLOATS = TensorSpec("pixel_values", ("batch", 3, 4, 4), "float32")


@pytest.fixture
def inputs() -> ReplayInputs:
    pixels = np.random.default_rng(5).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    return ReplayInputs(tuple("abcde"), pixels, (3, 1, 4, 1, 5))


def test_a_float_model_is_fed_normalized_planes_of_the_chosen_rows(inputs: ReplayInputs) -> None:
    found = inputs.feed(FLOATS, SPEC, slice(1, 3))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack([normalize(inputs.pixels[row], SPEC) for row in (1, 2)]))
    assert inputs.feed(FLOATS, SPEC).shape == (5, 3, 4, 4)


def test_a_pixel_model_is_fed_the_pixels_themselves_and_a_16_bit_one_its_own_type(inputs: ReplayInputs) -> None:
    pixels = inputs.feed(TensorSpec("x", ("batch", 4, 4, 3), "uint8"), SPEC, slice(2, 4))
    np.testing.assert_array_equal(pixels, inputs.pixels[2:4])
    half = inputs.feed(TensorSpec("x", ("batch", 3, 4, 4), "float16"), SPEC)
    np.testing.assert_array_equal(half, inputs.feed(FLOATS, SPEC).astype(np.float16))


@pytest.mark.parametrize(("size", "rows"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (8, [5])])
def test_feeds_cover_every_row_once_and_in_order(inputs: ReplayInputs, size: int, rows: list[int]) -> None:
    feeds = list(inputs.feeds(FLOATS, SPEC, size))
    assert [len(feed) for feed in feeds] == rows
    np.testing.assert_array_equal(np.concatenate(feeds), inputs.feed(FLOATS, SPEC))


@pytest.mark.parametrize("targets", [(3, 1, 4, 1, 5), None], ids=["labelled", "unlabelled"])
def test_inputs_survive_being_written_and_read(
    inputs: ReplayInputs, targets: tuple[int, ...] | None, tmp_path: Path
) -> None:
    written = ReplayInputs(inputs.images, inputs.pixels, targets)
    written.save(tmp_path / "inputs.npz")
    read = ReplayInputs.load(tmp_path / "inputs.npz")
    assert (read.images, read.targets) == (inputs.images, targets)
    np.testing.assert_array_equal(read.pixels, inputs.pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["inputs.npz"]


def test_rows_are_selected_by_name_in_the_asked_order_and_unknown_names_are_left_out() -> None:
    recording = Recording("test", ("a", "b", "c"), ("ha", "hb", "hc"), {"logits": np.arange(6).reshape(3, 2)})
    found = recording.select(["c", "nowhere", "a"])
    assert (found.images, found.input_sha256) == (("c", "a"), ("hc", "ha"))
    np.testing.assert_array_equal(found.outputs["logits"], [[4, 5], [0, 1]])


def test_hashes_tell_values_types_and_shapes_apart() -> None:
    rows = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]], np.float32)
    first, same, other = input_hashes(rows)
    assert first == same != other
    assert input_hashes(rows.astype(np.float64))[0] != first
    assert input_hashes(rows.reshape(3, 1, 2))[0] != first


def test_one_kind_of_recording_is_not_taken_for_the_other(inputs: ReplayInputs, tmp_path: Path) -> None:
    inputs.save(tmp_path / "inputs.npz")
    with pytest.raises(BundleError, match=r"Expected a recording at .*inputs\.npz"):
        Recording.load(tmp_path / "inputs.npz")
    Recording("test", ("a",), ("h",), {"logits": np.zeros((1, 2))}).save(tmp_path / "outputs.npz")
    with pytest.raises(BundleError, match=r"Expected a recording at .*outputs\.npz"):
        ReplayInputs.load(tmp_path / "outputs.npz")


@pytest.mark.parametrize("content", [None, b"", b"no zip file at all", b"PK\x03\x04 cut off"])
def test_a_file_that_holds_no_recording_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match="Run the recipe again"):
        ReplayInputs.load(path)
