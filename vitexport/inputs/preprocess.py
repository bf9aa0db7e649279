"""Preprocessing as data, and the one implementation that runs it: Pillow and NumPy only.

An image goes through ``upright, 8 bits -> channels -> resize -> crop -> (uint8 pixels) -> rescale -> normalize``. The
first half, :func:`pixels`, is what a camera pipeline must reproduce for a ``uint8`` graph; :func:`preprocess` is the
whole of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from vitexport.errors import FeedMismatchError
from vitexport.inputs.layout import image_layout
from vitexport.inputs.standard import CHANNEL_MODES, in_channels, standardize
from vitexport.tensors import Array, TensorSpec

__all__ = ["PreprocessSpec", "Resize", "batch", "from_pixels", "pixels", "preprocess"]

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Resize(BaseModel):
    """How an image is brought to the size the crop is taken from.

    Attributes:
        mode: ``squash`` to exactly ``size`` (aspect ratio lost), ``shortest_edge`` or ``longest_edge`` so that that
            edge has ``size[0]`` pixels (aspect ratio kept; the other edge is truncated to an integer, as Hugging Face
            and torchvision do), or ``cover`` so that the image just covers ``size`` (aspect ratio kept, edges rounded:
            timm's resize before a crop that is not square).
        size: (height, width) in pixels; the edge modes use equal values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["squash", "shortest_edge", "longest_edge", "cover"] = "squash"
    size: tuple[PositiveInt, PositiveInt]

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after resizing an image of ``height`` x ``width`` pixels."""
        if self.mode == "squash":
            return self.size
        if self.mode == "cover":
            ratio = min(height / self.size[0], width / self.size[1])
            return round(height / ratio), round(width / ratio)
        edge = self.size[0]
        height_leads = (height <= width) == (self.mode == "shortest_edge")
        if height_leads:
            return edge, max(1, int(edge * width / height))
        return max(1, int(edge * height / width)), edge


class PreprocessSpec(BaseModel):
    """Exactly what turns an image into a model input; there are no silent defaults for ``mean`` and ``std``.

    Attributes:
        image_size: (height, width) in pixels of the model input.
        resize: How the image is resized, or None to take it as it is.
        interpolation: Pillow resampling filter of the resize (antialiased, as Pillow always is when shrinking).
        crop: Centre crop to ``image_size`` after the resize; areas outside the image are black.
        crop_rounding: How half a pixel of crop offset is rounded: ``floor`` (Hugging Face) or ``round`` (torchvision,
            timm).
        rescale: Factor from uint8 to the unit the mean and std are given in, usually 1/255.
        mean: Mean per channel, subtracted after rescaling. Their number is that of the channels: 1 (greyscale), 3 or 4
            (colours with alpha, last).
        std: Divisor per channel after that.
        channel_order: Order of the three colours the model was trained with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: tuple[int, int]
    resize: Resize | None
    interpolation: Interpolation = "bicubic"
    crop: bool = False
    crop_rounding: Literal["floor", "round"] = "floor"
    rescale: float = Field(default=1 / 255, gt=0)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: Literal["rgb", "bgr"] = "rgb"

    @model_validator(mode="after")
    def _check(self) -> PreprocessSpec:
        if min(self.image_size) < 1:
            raise ValueError(f"image_size must be positive, found {self.image_size}")
        if len(self.mean) not in CHANNEL_MODES or len(self.std) != len(self.mean):
            raise ValueError(f"mean and std must each have 1, 3 or 4 values, found {self.mean} and {self.std}")
        if self.channel_order == "bgr" and self.channels != 3:
            raise ValueError(f"channel_order 'bgr' is for 3 channels, found {self.channels} values in mean and std")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, found {self.std}")
        if not self.crop and (
            self.resize is None or self.resize.mode != "squash" or self.resize.size != self.image_size
        ):
            raise ValueError("without a crop, resize must squash to image_size, or the model would get other sizes")
        return self

    @property
    def channels(self) -> int:
        """Number of channels of the model input: 1 (greyscale), 3 (RGB or BGR) or 4 (RGBA)."""
        return len(self.mean)


def pixels(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Make an image upright, resize and crop it: what a ``uint8`` graph takes.

    Returns:
        uint8 array ``[H, W, C]`` of ``spec.channels``, three of them in ``spec.channel_order``.

    Raises:
        ImageError: The image's values have no known range, see :func:`~vitexport.inputs.standard.standardize`.
    """
    image = in_channels(standardize(image), spec.channels)
    if spec.resize is not None:
        height, width = spec.resize.target(image.height, image.width)
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), _RESAMPLING[spec.interpolation])
    if spec.crop:
        height, width = spec.image_size
        top = _offset(image.height, height, spec.crop_rounding)
        left = _offset(image.width, width, spec.crop_rounding)
        image = image.crop((left, top, left + width, top + height))
    array: NDArray[np.uint8] = np.asarray(image, dtype=np.uint8).reshape(*spec.image_size, spec.channels)
    return array if spec.channel_order == "rgb" else np.ascontiguousarray(array[:, :, ::-1])


def _offset(have: int, want: int, rounding: str) -> int:
    """Return where a centre crop starts; negative when the image is smaller than the crop."""
    if rounding == "floor" or have < want:
        return (have - want) // 2
    return round((have - want) / 2)


def preprocess(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Turn an image into one float model input.

    Returns:
        float32 array ``[C, H, W]``: ``(pixels * rescale - mean) / std``.
    """
    return normalize(pixels(image, spec), spec)


def normalize(array: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """Apply rescale, mean and std to uint8 ``[H, W, C]`` pixels; returns float32 ``[C, H, W]``."""
    planar = np.ascontiguousarray(array.transpose(2, 0, 1)).astype(np.float32)
    planar *= np.float32(spec.rescale)
    planar -= np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    planar /= np.asarray(spec.std, dtype=np.float32)[:, None, None]
    return planar


def from_pixels(array: NDArray[np.uint8], spec: PreprocessSpec, tensor: TensorSpec) -> Array:
    """Finish what :func:`pixels` began: make a feed for the model input ``tensor``.

    Args:
        array: uint8 ``[N, H, W, C]`` in ``spec.channel_order``.
        spec: Preprocessing whose last step, the normalization, is still to be done.
        tensor: The model input: uint8 ``[N, H, W, C]`` takes pixels, float ``[N, C, H, W]`` takes normalized planes. A
            graph of another tool may have the axes the other way round.

    Returns:
        Array of ``tensor.dtype``, one image per row.

    Raises:
        FeedMismatchError: The input is of a dtype that images are not preprocessed to.
    """
    layout = image_layout(tensor)
    planes = layout is not None and layout.channels == 1
    if tensor.dtype == "uint8":
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if planes else array
    if tensor.dtype not in ("float32", "float16"):
        raise FeedMismatchError(
            f"Expected an image input of dtype uint8, float32 or float16, found {tensor.describe()}.",
            "Export the model with `--input float32` or `--input uint8`.",
        )
    rows = np.stack([normalize(row, spec) for row in array]).astype(tensor.dtype, copy=False)
    return rows if planes or layout is None else np.ascontiguousarray(rows.transpose(0, 2, 3, 1))


def batch(images: Sequence[Image.Image], spec: PreprocessSpec, tensor: TensorSpec) -> Array:
    """Preprocess decoded images into one feed; arguments and errors as for :func:`from_pixels`."""
    return from_pixels(np.stack([pixels(image, spec) for image in images]), spec, tensor)
