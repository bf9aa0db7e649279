"""The one conversion between images as they come and images as they are resized: upright, 8 bits per channel."""

from __future__ import annotations

import struct
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vitexport.errors import ImageError

__all__ = ["CHANNEL_MODES", "PARSER_ERRORS", "ImageWarning", "in_channels", "is_eight_bit", "standardize"]

CHANNEL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for the number of channels a model takes: greyscale, colour, colour with alpha."""

_EIGHT_BIT = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"}
)  # "1" as well: Pillow makes 0 and 255 of it

# Formats whose mode I holds 16 bits: PNG in older versions of Pillow, and PGM, scaled to 65535 from any maximum.
_SIXTEEN_BIT_FORMATS = frozenset({"PNG", "PPM"})

_WIDE = {"F": "floats", "I": "signed or 32-bit integers"}

_TWELVE_BITS = 4096

# Modes that Pillow converts to one other mode only.
_STEPS = {"La": "LA", "LAB": "RGB"}

PARSER_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, ZeroDivisionError, struct.error),
    UserWarning,  # where warnings are errors
)
"""What Pillow's parsers raise on tags and pixels that are damaged, or that an editor wrote as it liked."""

_WHITE_IS_ZERO = 0  # TIFF 6.0, PhotometricInterpretation; Pillow inverts 8 bits by itself


class ImageWarning(UserWarning):
    """Images that are left out, or that may not mean what their numbers say."""


def is_eight_bit(image: Image.Image) -> bool:
    """Return whether each channel of an image holds at most 8 bits, so that nothing of it is lost or scaled."""
    return image.mode in _EIGHT_BIT


def standardize(image: Image.Image, *, name: str = "image") -> Image.Image:
    """Return an image upright and with 8 bits per channel, so that it means the same however it was stored.

    The EXIF orientation is applied as ``transformers.image_utils.load_image`` applies it (``ImageOps.exif_transpose``).
    Of 16 bits the upper 8 are kept, as Pillow and libpng read 16-bit colour; the 12 of a TIFF count from their own
    maximum, and 16 that hold no more than 12 are warned of (:class:`ImageWarning`). An image that is upright and of 8
    bits already is returned as it is.

    Args:
        image: Any Pillow image.
        name: How an error message calls it.

    Raises:
        ImageError: Which values of the image are black and white is not known (floats, 32-bit integers).
    """
    image.load()
    if is_eight_bit(image):
        return _upright(image, name)
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = int(tags.get(ExifTags.Base.BitsPerSample, (16,))[0])
    elif image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS:
        bits = 16
    else:
        raise ImageError(
            f"Expected 8 or 16 bits per channel in '{name}', found {_WIDE.get(image.mode, 'values')} (Pillow's mode "
            f"{image.mode}), and which of them are black and white is not known.",
            "Scale the values to 0 to 255 as the training images were, and save them as an 8-bit PNG.",
        )
    values = np.asarray(_upright(image, name))
    if tags.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO:
        values = (1 << bits) - 1 - values
    if bits == 16 and 0 < values.max() < _TWELVE_BITS:
        warnings.warn(
            f"Of 16 bits an image uses 12 or fewer: its brightest value is {values.max()} of 65535, so it is nearly "
            "black. If a camera wrote 12 bits, scale them to the full range, as the training images were.",
            ImageWarning,
            stacklevel=2,
        )
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except PARSER_ERRORS:
        return image  # without a readable orientation there is none
    try:
        return ImageOps.exif_transpose(image) if turned else image
    except PARSER_ERRORS as error:
        raise ImageError(
            f"The EXIF orientation of '{name}' cannot be applied: {error}", "Save the image again, upright."
        ) from error


def in_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return a standard image as greyscale (1), RGB (3) or RGBA (4), by Pillow's ``convert``.

    Transparency is dropped from grey and RGB, not blended with a background: so do ``transformers.pipeline`` and timm's
    loader. An image without transparency is opaque in RGBA.
    """
    mode = CHANNEL_MODES[channels]
    if image.mode == mode:
        return image
    between = _STEPS.get(image.mode)
    return (image.convert(between) if between else image).convert(mode)
