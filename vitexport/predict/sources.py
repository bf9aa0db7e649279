"""What may be given as input of a prediction: one image in any of its forms, and what names many of them."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitexport.errors import ImageError
from vitexport.inputs.images import decode_image, list_images, load_image
from vitexport.inputs.standard import standardize

__all__ = ["ImageInput", "expand_sources", "is_one_image", "to_image"]

ImageInput: TypeAlias = str | Path | bytes | Image.Image | NDArray[np.uint8] | NDArray[np.uint16]
"""One image: the path of a file, the bytes of one, a Pillow image, or uint8 or uint16 pixels ``[H, W]`` (grey),
``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA), over the whole range of their type."""


def is_one_image(value: object) -> bool:
    """Return whether a value stands for one image, and not for a sequence of them."""
    return isinstance(value, str | Path | bytes | Image.Image | np.ndarray)


def to_image(image: ImageInput, *, name: str = "image") -> Image.Image:
    """Return an image upright and with 8 bits per channel, whatever form it has.

    Args:
        image: See :data:`ImageInput`.
        name: How an error message calls an image without a path.

    Raises:
        ImageError: The file or its bytes cannot be decoded, an array is none of pixels, the range of the values is not
            known, or it is none of these.
    """
    if isinstance(image, str | Path):
        return load_image(Path(image))
    if isinstance(image, bytes):
        return decode_image(image, name=name)
    if isinstance(image, Image.Image):
        try:
            return standardize(image, name=name)
        except (OSError, SyntaxError, ValueError, EOFError) as error:  # opened, and not read before now
            raise ImageError(
                f"'{name}' cannot be read: {error}", "Open it from a whole file, and leave it open."
            ) from error
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"Expected '{name}' to be a path, encoded bytes, a Pillow image or a uint8 array, "
            f"found {type(image).__name__}.",
            "Give one of these, or a list of them.",
        )
    grey = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    if image.dtype.newbyteorder("=") not in (np.uint8, np.uint16) or 0 in image.shape or not (grey or _colours(image)):
        raise ImageError(
            f"Expected '{name}' to be uint8[height, width, 3] in RGB, or with 4 (RGBA) or 1 channels, or uint16, "
            f"found {image.dtype.name}{list(image.shape)}.",
            _how_to_convert(image),
        )
    pixels = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    return Image.fromarray(pixels.reshape(pixels.shape[:2]) if grey else pixels)


def _colours(array: NDArray[np.generic]) -> bool:
    return array.ndim == 3 and array.shape[2] in (3, 4)


def _how_to_convert(array: NDArray[np.generic]) -> str:
    if array.size == 0:
        return "It has no pixels."
    if array.ndim == 4:
        return "Give several images as a list: list(array)."
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and not _colours(array):
        return "Put the channels last: array.transpose(1, 2, 0), in uint8 values from 0 to 255."
    if array.dtype not in (np.uint8, np.uint16):
        return "Convert values from 0 to 1 with (255 * array).round().astype(np.uint8); normalized ones cannot be used."
    return "Choose the channels that are red, green and blue: array[..., [r, g, b]]."


def expand_sources(sources: Sequence[str | PathLike[str]]) -> tuple[Path, ...]:
    """Turn sources into image paths, in order.

    Args:
        sources: Each an image file, a folder (searched recursively), a pattern such as ``photos/**/*.jpg``, or a
            ``.txt`` file with one path per line (relative to that file; empty lines and ``#`` comments are left out).

    Raises:
        ImageError: A folder holds no image, a pattern matches nothing, or a list cannot be read.
    """
    return tuple(path for source in sources for path in _expand(str(source)))


def _expand(source: str) -> Iterator[Path]:
    path = Path(source)
    if path.is_dir():
        yield from list_images(path)
    elif path.suffix == ".txt":
        yield from _read_list(path)
    elif not path.exists() and glob.has_magic(source):
        # pathlib's glob cannot start at an absolute pattern.
        matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207
        if not matches:
            raise ImageError(f"Expected images to match '{source}', found none.", "Check the pattern.")
        yield from (Path(match) for match in matches if not Path(match).is_dir())
    else:
        yield path


def _read_list(path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(
            f"Expected a list of image paths in '{path}', found: {error}", "Write one path per line, as UTF-8."
        ) from error
    named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not named:
        raise ImageError(f"Expected image paths in '{path}', found none.", "Write one path per line.")
    yield from (path.parent / line for line in named)
