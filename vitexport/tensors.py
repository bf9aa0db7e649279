"""Tensor descriptions, the names of their dtypes, and the one place where feeds are checked against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import FeedMismatchError

__all__ = [
    "DTYPE_OF_PRECISION",
    "ROTATION_SUFFIX",
    "Array",
    "TensorSpec",
    "batch_limit",
    "check_feeds",
    "pad_rows",
    "tile_rows",
]

Array = NDArray[np.generic]

DTYPE_OF_PRECISION = {"fp16": "float16", "bf16": "bfloat16"}
"""What settings call a 16-bit precision, and what NumPy and ONNX call its elements."""

ROTATION_SUFFIX = ".hadamard"
"""Ends the name of a node that multiplies a tensor by a rotation, which is no weight. Part of what is written into
files: a runtime's profile and an engine's layers show names, not constants."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one model input or output.

    Attributes:
        name: Tensor name as the model declares it.
        shape: One entry per axis: an ``int`` is fixed, a ``str`` names a dynamic axis.
        dtype: NumPy dtype name such as ``float32``, ``float16`` or ``uint8``.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def describe(self) -> str:
        """Return e.g. ``pixel_values: float32[batch, 3, 224, 224]``."""
        return f"{self.name}: {self.dtype}[{', '.join(str(axis) for axis in self.shape)}]"


def batch_limit(spec: TensorSpec) -> int | None:
    """Return the fixed batch size of an input, or None when its first axis is dynamic."""
    first = spec.shape[0] if spec.shape else 1
    return first if isinstance(first, int) else None


def pad_rows(rows: Array, size: int) -> Array:
    """Return ``rows`` lengthened to ``size`` on axis 0 by repeating the last one; longer ones come back as they are."""
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing > 0 else rows


def tile_rows(rows: Array, size: int) -> Array:
    """Return exactly ``size`` rows: those given, again and again from the first."""
    return np.resize(rows, (size, *rows.shape[1:]))


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Check that ``feeds`` has exactly the inputs ``specs`` names, with matching dtype and shape.

    Dynamic axes accept any size above zero; axes of the same name must agree.

    Raises:
        FeedMismatchError: An input is missing, unknown, or of another dtype or shape.
    """
    if len(feeds) != len(specs) or any(spec.name not in feeds for spec in specs):
        expected = ", ".join(spec.name for spec in specs)
        raise FeedMismatchError(
            f"Expected the inputs [{expected}], found [{', '.join(feeds)}].",
            "Pass exactly the inputs the model declares; `vitexport inspect MODEL` lists them.",
        )
    sizes: dict[str, int] = {}
    for spec in specs:
        array = feeds[spec.name]
        if array.dtype.name != spec.dtype or not _shape_fits(spec.shape, array.shape, sizes):
            found = f"{array.dtype.name}{list(array.shape)}"
            raise FeedMismatchError(
                f"Expected {spec.describe()}, found {found}.",
                "Convert the array to that dtype and shape; preprocess() makes both from an image.",
            )


def _shape_fits(expected: tuple[int | str, ...], found: tuple[int, ...], sizes: dict[str, int]) -> bool:
    if len(expected) != len(found):
        return False
    for want, have in zip(expected, found, strict=True):
        fixed = sizes.setdefault(want, have) if isinstance(want, str) else want
        if have != fixed or have == 0:
            return False
    return True
