"""Whatever form an image has, the model must see the same pixels: depth, orientation, colour mode."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from tests.support.deep_images import pgm, png16, tiff
from vitexport.errors import ImageError
from vitexport.inputs.images import content_hash, decode_image
from vitexport.inputs.preprocess import PreprocessSpec, Resize, pixels
from vitexport.inputs.standard import ImageWarning, in_channels, standardize

HEIGHT, WIDTH = 20, 30

INVERSE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera held like that does to the upright picture, by EXIF orientation."""


@pytest.fixture(scope="module")
def grey() -> NDArray[np.uint8]:
    """Every brightness there is, several times."""
    return np.random.default_rng(5).permutation(np.arange(HEIGHT * WIDTH) % 256).reshape(HEIGHT, WIDTH).astype(np.uint8)


@pytest.fixture(scope="module")
def colours() -> NDArray[np.uint8]:
    return np.random.default_rng(6).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode_image(data, name="photo"))


def packed12(values: NDArray[np.uint16]) -> bytes:
    """Return 12-bit values, two in three bytes, rows of even length (TIFF 6.0)."""
    first, second = values.reshape(-1, 2).T.astype(np.uint32)
    both = (first << 12) | second
    return np.stack([both >> 16, both >> 8, both], axis=1).astype(np.uint8).tobytes()


# The two ways in which 8 bits are widened to 16: by shifting, and by repeating the byte, so that white stays white.
@pytest.mark.parametrize("widen", [256, 257])
def test_a_grey_photo_of_16_bits_is_the_same_as_the_one_of_8(grey: NDArray[np.uint8], widen: int) -> None:
    deep = grey.astype(np.uint16) * np.uint16(widen)
    files = [
        encoded(Image.fromarray(deep), "PNG"),
        encoded(Image.fromarray(deep), "TIFF"),
        encoded(Image.fromarray(deep), "TIFF", compression="tiff_lzw"),
        encoded(Image.fromarray(deep.astype(">u2")), "TIFF"),
        pgm(deep, 65535),
        tiff((65535 - deep).astype("<u2").tobytes(), HEIGHT, WIDTH, 16, white_is_zero=True),
    ]
    for data in files:
        np.testing.assert_array_equal(decoded(data), grey)
    for values in (deep, deep.astype(">u2")):
        np.testing.assert_array_equal(np.asarray(standardize(Image.fromarray(values))), grey)


def test_fewer_than_16_bits_count_from_their_own_maximum(grey: NDArray[np.uint8]) -> None:
    twelve = np.rint(grey / 255 * 4095).astype(np.uint16)
    np.testing.assert_array_equal(decoded(tiff(packed12(twelve), HEIGHT, WIDTH, 12)), grey)
    np.testing.assert_array_equal(decoded(pgm(twelve, 4095)), grey)


@pytest.mark.parametrize("channels", [3, 4])
def test_a_colour_photo_of_16_bits_is_the_same_as_the_one_of_8(colours: NDArray[np.uint8], channels: int) -> None:
    shown = colours[..., :channels]
    np.testing.assert_array_equal(decoded(png16(shown.astype(np.uint16) * np.uint16(257))), shown)


def test_twelve_bits_in_sixteen_are_warned_of(grey: NDArray[np.uint8]) -> None:
    narrow = grey.astype(np.uint16) * np.uint16(16)
    for data in (
        encoded(Image.fromarray(narrow), "PNG"),
        tiff((65535 - narrow).astype("<u2").tobytes(), HEIGHT, WIDTH, 16, white_is_zero=True),
    ):
        with pytest.warns(ImageWarning, match="its brightest value is 4080 of 65535"):
            decoded(data)
    decoded(encoded(Image.fromarray(grey.astype(np.uint16) * np.uint16(17)), "PNG"))
    decoded(encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"))  # black, whatever the bits


WHOLE = "signed or 32-bit integers"


@pytest.mark.parametrize(
    ("mode", "data", "found"),
    [
        ("F", tiff(np.zeros((HEIGHT, WIDTH), "<f4").tobytes(), HEIGHT, WIDTH, 32, sample_format=3), "floats"),
        ("I", tiff(np.zeros((HEIGHT, WIDTH), "<u4").tobytes(), HEIGHT, WIDTH, 32), WHOLE),
        ("I", tiff(np.zeros((HEIGHT, WIDTH), "<i2").tobytes(), HEIGHT, WIDTH, 16, sample_format=2), WHOLE),
    ],
    ids=["float", "32 bits", "signed"],
)
def test_values_without_a_known_range_are_refused_with_what_to_do(mode: str, data: bytes, found: str) -> None:
    with pytest.raises(ImageError, match=f"'photo', found {found} .Pillow's mode {mode}") as caught:
        decode_image(data, name="photo")
    assert "0 to 255" in caught.value.hint
    with pytest.raises(ImageError, match=f"mode {mode}"):
        standardize(Image.new(mode, (2, 2)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", INVERSE)
def test_images_are_upright_however_they_are_stored(orientation: int, kind: str, colours: NDArray[np.uint8]) -> None:
    upright = Image.fromarray(colours[..., :3])
    turn = INVERSE[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(upright.transpose(turn) if turn is not None else upright, kind, exif=exif, **options)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = decode_image(data, name="photo")
    assert found.size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(reference))
    np.testing.assert_array_equal(np.asarray(standardize(Image.open(io.BytesIO(data)))), np.asarray(reference))
    np.testing.assert_array_equal(np.asarray(standardize(found)), np.asarray(found))  # once, and not again
    if kind != "JPEG":
        np.testing.assert_array_equal(np.asarray(found), colours[..., :3])
        assert content_hash(found) == content_hash(upright)


def test_a_16_bit_image_is_turned_upright_too(grey: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = Image.fromarray(grey.astype(np.uint16) * np.uint16(257)).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(decoded(encoded(turned, "PNG", exif=exif)), grey)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff"])
def test_an_orientation_that_cannot_be_read_leaves_the_image_as_it_is(exif: bytes, colours: NDArray[np.uint8]) -> None:
    shown = colours[..., :3]
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(shown), "PNG", exif=exif)), shown)


def test_an_image_that_is_standard_already_is_not_copied(colours: NDArray[np.uint8]) -> None:
    image = Image.fromarray(colours)
    assert standardize(image) is image
    assert in_channels(image, 4) is image


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_colour_mode_becomes_the_channels_of_a_model(mode: str, channels: int) -> None:
    spec = PreprocessSpec(image_size=(6, 5), resize=Resize(size=(6, 5)), mean=(0,) * channels, std=(1,) * channels)
    found = pixels(Image.new(mode, (12, 9)), spec)
    assert found.shape == (6, 5, channels) and found.dtype == np.uint8


def test_channels_are_those_of_pillow_and_alpha_is_dropped_not_blended(colours: NDArray[np.uint8]) -> None:
    image = Image.fromarray(colours)
    np.testing.assert_array_equal(np.asarray(in_channels(image, 3)), colours[..., :3])
    np.testing.assert_array_equal(np.asarray(in_channels(image, 1)), np.asarray(image.convert("L")))
    opaque = np.asarray(in_channels(image.convert("RGB"), 4))
    np.testing.assert_array_equal(opaque[..., :3], colours[..., :3])
    assert (opaque[..., 3] == 255).all()
