"""Finding, decoding and batching images safely: bounded size, truncation detected, content hashed."""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitexport.errors import ImageError
from vitexport.inputs.preprocess import PreprocessSpec, batch
from vitexport.inputs.standard import PARSER_ERRORS, ImageWarning, in_channels, standardize
from vitexport.tensors import Array, TensorSpec

__all__ = ["MAX_PIXELS", "batches", "content_hash", "content_hashes", "decode_image", "list_images", "load_image"]

# A camera's 50 megapixels fit; a decompression bomb does not. RGB at this size is 192 MB.
MAX_PIXELS = 64_000_000

_FILTERING = threading.Lock()

_SUFFIXES = frozenset(
    {".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)

# Images too, which this package does not read: left out, and said.
_OTHER_SUFFIXES = frozenset(
    {".avif", ".dcm", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jp2", ".jxl", ".svg", ".tga"}
)


def list_images(folder: Path, *, limit: int | None = None) -> tuple[Path, ...]:
    """Return the image files under ``folder``, recursively, sorted by their path.

    Args:
        folder: Directory; hidden files and directories are left out, and with an :class:`ImageWarning` images of a
            kind that is not read, such as GIF.
        limit: At most so many, spread evenly over the sorted list so that a prefix of classes is not all that is seen.

    Raises:
        ImageError: The folder does not exist or holds no image, or the limit is none.
    """
    if limit is not None and limit < 1:
        raise ImageError(f"Expected a limit of at least 1 image, found {limit}.", "Give a positive number, or none.")
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ImageError(
            f"Expected an image folder at '{folder}', found {found}.", "Give a directory of JPEG or PNG files."
        )
    images = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES | _OTHER_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    paths = [path for path in images if path.suffix.lower() in _SUFFIXES]
    others = Counter(path.suffix.lower() for path in images if path.suffix.lower() in _OTHER_SUFFIXES)
    unread = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    if not paths:
        kinds = ", ".join(sorted(_SUFFIXES))
        raise ImageError(
            f"Expected images in '{folder}', found {f'none that can be read: {unread}' if unread else 'none'}.",
            f"Files with these endings count: {kinds}.",
        )
    if unread:
        told = f"Of the images in '{folder}' these are left out, for their kind is not read: {unread}."
        warnings.warn(f"{told} Convert them to PNG or JPEG.", ImageWarning, stacklevel=2)
    if limit is not None and limit < len(paths):
        paths = [paths[index * len(paths) // limit] for index in range(limit)]
    return tuple(paths)


def load_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file, see :func:`decode_image`.

    Raises:
        ImageError: The file is missing, no image, truncated, larger than ``max_pixels``, or of values without a known
            range.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"Cannot read the image '{path}': {error}", "Check the path and its permissions.") from error
    return decode_image(data, name=str(path), max_pixels=max_pixels)


def decode_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode image bytes, with the size checked before anything is decompressed.

    The image is upright and has 8 bits per channel, see :func:`~vitexport.inputs.standard.standardize`; its colour mode
    is the file's own. :func:`~vitexport.inputs.preprocess.pixels` brings it to the channels of a model.

    Args:
        data: A complete file: JPEG, PNG, WebP, BMP, TIFF or PPM.
        name: How the error message calls it.
        max_pixels: Largest accepted width x height.

    Raises:
        ImageError: No image, truncated, too large, or of values without a known range.
    """
    try:
        image = _open(data)
        if image.width * image.height > max_pixels:
            raise ImageError(
                f"'{name}' has {image.width} x {image.height} pixels; at most {max_pixels:,} are accepted.",
                "Shrink the image first.",
            )
        image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"'{name}' is too large to decode safely: {error}", "Shrink the image first.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"Expected an image in '{name}', found {len(data)} bytes of something else.", "Use JPEG, PNG or WebP."
        ) from error
    except PARSER_ERRORS as error:
        raise ImageError(
            f"'{name}' is damaged or truncated: {error}", "Copy the file again or leave it out."
        ) from error
    return standardize(image, name=name)


def _open(data: bytes) -> Image.Image:
    """Read an image's header. Nothing is decompressed."""
    # The list of warning filters is one for all threads: what two of them save and restore at once stays changed.
    with _FILTERING, warnings.catch_warnings():
        # Pillow's own bomb check warns at 89 megapixels and raises at twice that; ours decides before it.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"))


def batches(paths: Sequence[Path], spec: PreprocessSpec, tensor: TensorSpec, size: int) -> Iterator[Array]:
    """Yield preprocessed batches of at most ``size`` images, in order, one in memory at a time.

    Args:
        paths: Image files.
        spec: Their preprocessing.
        tensor: The model input they are made for.
        size: Images per batch; the last one may be smaller.

    Raises:
        ImageError: An image cannot be used; the message names it.
    """
    for start in range(0, len(paths), size):
        yield batch([load_image(path) for path in paths[start : start + size]], spec, tensor)


def content_hash(image: Image.Image) -> str:
    """Return a SHA-256 of an upright image's colours, so that a renamed or re-encoded (lossless) copy is found."""
    pixels = np.ascontiguousarray(in_channels(image, 3))
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.data)
    return digest.hexdigest()


def content_hashes(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return :func:`content_hash` of each image file.

    Raises:
        ImageError: An image cannot be used; the message names it.
    """
    return tuple(content_hash(load_image(path)) for path in paths)
