"""Images decoded once and read as often as needed: by PyTorch, by every variant, for the report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitexport.closing import Closing
from vitexport.inputs.images import load_image
from vitexport.inputs.preprocess import PreprocessSpec, from_pixels, pixels
from vitexport.tensors import Array, TensorSpec

__all__ = ["DecodedImages"]


class DecodedImages(Closing):
    """Resized and cropped pixels of image files, in a file without a name: the memory they take does not grow.

    Args:
        paths: Image files, at least one; all are decoded here.
        spec: Their preprocessing.

    Raises:
        ImageError: An image cannot be used; the message names it.
    """

    def __init__(self, paths: Sequence[Path], spec: PreprocessSpec) -> None:
        self.spec = spec
        self._file = tempfile.TemporaryFile(prefix="vitexport-")  # noqa: SIM115  # closed by close()
        try:
            for path in paths:
                self._file.write(pixels(load_image(path), spec).tobytes())
            self._file.flush()
        except BaseException:
            self._file.close()
            raise
        shape = (len(paths), *spec.image_size, spec.channels)
        self._pixels: NDArray[np.uint8] = np.memmap(self._file, dtype=np.uint8, mode="r", shape=shape)

    def __len__(self) -> int:
        return len(self._pixels)

    def rows(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Return the pixels of some images, uint8 ``[N, H, W, C]``."""
        return np.stack([self._pixels[row] for row in rows])

    def feeds(self, tensor: TensorSpec, size: int) -> Iterator[Array]:
        """Yield all images as feeds of the model input ``tensor``, at most ``size`` at a time."""
        for start in range(0, len(self), size):
            yield from_pixels(np.array(self._pixels[start : start + size]), self.spec, tensor)

    def close(self) -> None:
        """Release the pixels and their place on disk."""
        self._pixels = self._pixels[:0].copy()
        self._file.close()
