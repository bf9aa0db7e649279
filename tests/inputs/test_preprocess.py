from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from vitexport.errors import FeedMismatchError
from vitexport.inputs.preprocess import PreprocessSpec, Resize, batch, pixels, preprocess
from vitexport.tensors import TensorSpec


def spec(**changes: object) -> PreprocessSpec:
    fields: dict[str, object] = {
        "image_size": (24, 24),
        "resize": Resize(mode="squash", size=(24, 24)),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.6, 0.7),
    }
    return PreprocessSpec.model_validate({**fields, **changes})


@pytest.mark.parametrize(
    ("mode", "height", "width", "expected"),
    [
        ("squash", 40, 60, (32, 32)),
        ("shortest_edge", 40, 60, (32, 48)),
        ("shortest_edge", 60, 40, (48, 32)),
        ("shortest_edge", 50, 50, (32, 32)),
        ("shortest_edge", 333, 500, (32, 48)),  # 48.05 is truncated, as torchvision and Hugging Face do
        ("longest_edge", 40, 60, (21, 32)),
        ("longest_edge", 60, 40, (32, 21)),
        ("longest_edge", 1, 1000, (1, 32)),
    ],
)
def test_resize_target(mode: str, height: int, width: int, expected: tuple[int, int]) -> None:
    assert Resize.model_validate({"mode": mode, "size": (32, 32)}).target(height, width) == expected


def test_preprocess_is_rescale_then_mean_then_std_per_channel(photo: Image.Image) -> None:
    chosen = spec()
    expected = np.asarray(photo.resize((24, 24), Image.Resampling.BICUBIC), np.float64) / 255
    expected = (expected - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    found = preprocess(photo, chosen)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-6)


def test_centre_crop_takes_the_middle_and_rounds_as_asked(photo: Image.Image) -> None:
    whole = np.asarray(photo)
    for rounding, top in (("floor", 7), ("round", 8)):  # (40 - 25) / 2 = 7.5, half to even
        chosen = spec(image_size=(25, 60), resize=None, crop=True, crop_rounding=rounding)
        np.testing.assert_array_equal(pixels(photo, chosen), whole[top : top + 25])


def test_a_crop_larger_than_the_image_is_padded_with_black(photo: Image.Image) -> None:
    found = pixels(photo, spec(image_size=(50, 60), resize=None, crop=True))
    assert found.shape == (50, 60, 3)
    assert not found[:5].any() and not found[45:].any()
    np.testing.assert_array_equal(found[5:45], np.asarray(photo))


def test_bgr_reverses_the_channels(photo: Image.Image) -> None:
    np.testing.assert_array_equal(pixels(photo, spec(channel_order="bgr")), pixels(photo, spec())[:, :, ::-1])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_colour_modes_become_rgb(photo: Image.Image, mode: str) -> None:
    assert pixels(photo.convert(mode), spec()).shape == (24, 24, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"std": (0.5, 0.0, 0.5)},
        {"image_size": (0, 24)},
        {"resize": None},
        {"resize": {"mode": "shortest_edge", "size": (24, 24)}},
        {"resize": {"mode": "squash", "size": (30, 30)}},
        {"gamma": 2.2},
        {"mean": (0.5,)},
        {"mean": (0.5, 0.5), "std": (0.5, 0.5)},
        {"mean": (0.5,), "std": (0.5,), "channel_order": "bgr"},
        {"mean": (), "std": ()},
    ],
)
def test_a_spec_that_would_give_wrong_inputs_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        spec(**changes)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_other_numbers_of_channels_are_normalized_each_by_its_own(photo: Image.Image, channels: int, mode: str) -> None:
    mean, std = (0.1, 0.2, 0.3, 0.4)[:channels], (0.5, 0.6, 0.7, 0.8)[:channels]
    chosen = spec(mean=mean, std=std)
    assert chosen.channels == channels
    image = photo.copy()
    image.putalpha(photo.convert("L").rotate(180))
    image = image.convert(mode)
    expected = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC), np.float64).reshape(24, 24, channels) / 255
    expected = (expected - mean) / std
    np.testing.assert_allclose(preprocess(image, chosen), expected.transpose(2, 0, 1), atol=1e-6)
    raw = batch([image], chosen, TensorSpec("x", ("n", 24, 24, channels), "uint8"))
    assert raw.shape == (1, 24, 24, channels)
    assert PreprocessSpec.model_validate_json(chosen.model_dump_json()) == chosen
    padded = pixels(image, spec(mean=mean, std=std, image_size=(50, 60), resize=None, crop=True))
    assert not padded[:5].any() and padded.shape == (50, 60, channels)


def test_batch_makes_what_the_input_declares(photo: Image.Image) -> None:
    planes = batch([photo, photo], spec(), TensorSpec("x", ("n", 3, 24, 24), "float32"))
    assert planes.shape == (2, 3, 24, 24) and planes.dtype == np.float32
    raw = batch([photo], spec(), TensorSpec("x", ("n", 24, 24, 3), "uint8"))
    assert raw.shape == (1, 24, 24, 3) and raw.dtype == np.uint8
    with pytest.raises(FeedMismatchError, match="int64"):
        batch([photo], spec(), TensorSpec("x", ("n", 3), "int64"))
