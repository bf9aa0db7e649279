"""Where the channels of an image input are, which graphs of other tools do not say."""

from __future__ import annotations

from dataclasses import dataclass

from vitexport.tensors import TensorSpec

__all__ = ["ImageLayout", "image_layout"]

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class ImageLayout:
    """Positions of the axes of a batch of images.

    Attributes:
        channels: Position of the channels: 1 (planes, ``NCHW``) or 3 (pixels, ``NHWC``).
    """

    channels: int

    @property
    def height(self) -> int:
        """Position of the height; the width follows it."""
        return 2 if self.channels == 1 else 1


def image_layout(tensor: TensorSpec) -> ImageLayout | None:
    """Return the layout of an input, or None where it takes no batch of images.

    Channels are on the axis that holds 1, 3 or 4. Where both or none of the two axes in question does, integers are
    pixels (``NHWC``) and floats are planes (``NCHW``).
    """
    if len(tensor.shape) != 4:
        return None
    found = [axis for axis in (1, 3) if tensor.shape[axis] in _CHANNELS]
    usual = 1 if tensor.dtype.startswith("float") else 3
    return ImageLayout(found[0] if len(found) == 1 else usual)
