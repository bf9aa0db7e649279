"""Our preprocessing against another one, from the image file on, and a name for what differs.

Wrong mean and std, BGR for RGB, another interpolation or crop: a model still answers, only worse, and no comparison of
runtimes can see it because all of them get the same wrong pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from vitexport.inputs.preprocess import PreprocessSpec, Resize, preprocess

__all__ = ["LIMIT_LEVELS", "PixelParity", "compare_pixels"]

LIMIT_LEVELS = 1.0
"""RMS difference, in steps of the 256 brightness levels, up to which two pipelines are the same. Decoders and resizes
in another arithmetic stay below one level; another interpolation is several."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class PixelParity:
    """How far our input tensors are from the expected ones.

    Attributes:
        images: Number of images compared.
        rms_levels: RMS difference in brightness levels (0 to 255), over all images.
        max_levels: Largest difference in brightness levels.
        finding: In words: that they agree, or what differs.
    """

    images: int
    rms_levels: float
    max_levels: float
    finding: str

    @property
    def passed(self) -> bool:
        """Whether the two agree on at least one image."""
        return self.images > 0 and self.rms_levels <= LIMIT_LEVELS


def compare_pixels(images: Sequence[Image.Image], expected: Sequence[Floats], spec: PreprocessSpec) -> PixelParity:
    """Compare our preprocessing with tensors another one made of the same images.

    Args:
        images: Decoded images.
        expected: For each, float32 ``[C, H, W]`` of the other preprocessing.
        spec: Ours.
    """
    if not images:
        return PixelParity(0, float("inf"), float("inf"), "no images were compared")
    shape = (spec.channels, *spec.image_size)
    wrong = [index for index, tensor in enumerate(expected) if tensor.shape != shape]
    if wrong:
        found, own = ("x".join(str(edge) for edge in edges) for edges in (expected[wrong[0]].shape, shape))
        text = f"the other makes {found} tensors, ours are {own}"
        return PixelParity(len(images), float("inf"), float("inf"), text)
    ours = [preprocess(image, spec) for image in images]
    rms, largest = _levels(ours, expected, spec)
    if rms <= LIMIT_LEVELS:
        same = "equal" if largest < 0.01 else f"RMS difference {rms:.2f}, largest {largest:.1f} of 255 levels"
        return PixelParity(len(images), rms, largest, f"{same} on {len(images)} images")
    cause = _explain(images, ours, expected, spec, rms)
    text = f"RMS difference {rms:.1f} of 255 levels on {len(images)} images: {cause}"
    return PixelParity(len(images), rms, largest, text)


def _levels(ours: Sequence[Floats], expected: Sequence[Floats], spec: PreprocessSpec) -> tuple[float, float]:
    """Return RMS and largest difference in brightness levels."""
    unit = (np.asarray(spec.std) / spec.rescale)[:, None, None]
    energy, count, largest = 0.0, 0, 0.0
    for mine, other in zip(ours, expected, strict=True):
        difference = (mine.astype(np.float64) - other) * unit
        energy += float((difference**2).sum())
        count += difference.size
        largest = max(largest, float(np.abs(difference).max()))
    return float(np.sqrt(energy / count)), largest


def _explain(
    images: Sequence[Image.Image],
    ours: Sequence[Floats],
    expected: Sequence[Floats],
    spec: PreprocessSpec,
    rms: float,
) -> str:
    """Name the one change of our settings that removes most of the difference."""
    best, words = rms, ""
    for text, variant in _variants(spec):
        found, _ = _levels([preprocess(image, variant) for image in images], expected, spec)
        if found < best:
            best, words = found, text
    if best <= max(LIMIT_LEVELS, 0.1 * rms):
        return words
    fitted = _normalization(ours, expected, spec)
    if fitted is not None:
        return fitted
    return f"{words} explains part of it ({best:.1f} levels remain)" if best < 0.7 * rms else "no single cause found"


def _variants(spec: PreprocessSpec) -> Iterator[tuple[str, PreprocessSpec]]:
    """Yield every other setting that is commonly mixed up, with what it would mean."""
    if spec.channels == 3:
        order = "bgr" if spec.channel_order == "rgb" else "rgb"
        text = f"the channels are swapped, {spec.channel_order.upper()} here and {order.upper()} there"
        yield text, spec.model_copy(update={"channel_order": order})
    for method in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"):
        if method != spec.interpolation:
            text = f"the interpolation is {spec.interpolation} here and {method} there"
            yield text, spec.model_copy(update={"interpolation": method})
    height, width = spec.image_size
    edges = {min(height, width), *(round(max(height, width) / fraction) for fraction in (0.875, 0.9, 0.95))}
    shapes = [("squashed to the input size", Resize(size=spec.image_size), False)]
    shapes += [
        (f"resized to {edge} on the shorter edge and cropped", Resize(mode="shortest_edge", size=(edge, edge)), True)
        for edge in sorted(edges)
    ]
    for text, resize, crop in shapes:
        if (resize, crop) != (spec.resize, spec.crop):
            content = {**spec.model_dump(), "resize": resize.model_dump(), "crop": crop}
            try:
                yield f"images are {text} there", PreprocessSpec.model_validate(content)
            except ValidationError:  # a combination that this input size does not allow
                continue


def _normalization(ours: Sequence[Floats], expected: Sequence[Floats], spec: PreprocessSpec) -> str | None:
    """Return the mean and std the other must use, when a straight line per channel explains everything."""
    mean, std, remaining = [], [], 0.0
    for channel in range(spec.channels):
        x = np.concatenate([tensor[channel].ravel() for tensor in ours]).astype(np.float64)
        y = np.concatenate([tensor[channel].ravel() for tensor in expected]).astype(np.float64)
        slope, offset = np.polyfit(x, y, 1) if np.ptp(x) > 0 else (0.0, 0.0)
        if slope <= 0:
            return None
        unit = spec.std[channel] / spec.rescale
        remaining += float(((y - (slope * x + offset)) ** 2).mean()) * (unit / slope) ** 2
        # y = (v - mean') / std' with v = x * std + mean, so std' = std / slope and mean' = mean - offset * std'.
        std.append(spec.std[channel] / slope)
        mean.append(spec.mean[channel] - offset * std[-1])
    if np.sqrt(remaining / spec.channels) > LIMIT_LEVELS:
        return None
    numbers = ", ".join(f"{value:.3f}" for value in mean), ", ".join(f"{value:.3f}" for value in std)
    mine = ", ".join(f"{value:.3f}" for value in spec.mean), ", ".join(f"{value:.3f}" for value in spec.std)
    return f"mean and std are ({mine[0]}) and ({mine[1]}) here, ({numbers[0]}) and ({numbers[1]}) there"
