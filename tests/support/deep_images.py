"""Files that Pillow reads and cannot write: 16-bit colour PNG and TIFF of any depth, uncompressed."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["pgm", "png16", "tiff"]


def png16(values: NDArray[np.uint16]) -> bytes:
    """Return a 16-bit PNG of ``[H, W, C]`` values: grey, grey with alpha, RGB or RGBA."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def pgm(values: NDArray[np.uint16], maximum: int) -> bytes:
    """Return a binary PGM of ``[H, W]`` values."""
    height, width = values.shape
    return b"P5 %d %d %d\n" % (width, height, maximum) + values.astype(">u2").tobytes()


def tiff(
    data: bytes, height: int, width: int, bits: int, *, white_is_zero: bool = False, sample_format: int = 1
) -> bytes:
    """Return an uncompressed grey TIFF (TIFF 6.0, little endian) of one strip.

    Args:
        data: The strip.
        height: Rows.
        width: Columns.
        bits: BitsPerSample.
        white_is_zero: PhotometricInterpretation 0 in place of 1.
        sample_format: 1 for unsigned integers, 2 for signed, 3 for floats.
    """
    strip = 8
    tags = [
        *((256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, strip)),
        *((277, 1), (278, height), (279, len(data)), (339, sample_format)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    padded = data + b"\0" * (len(data) % 2)
    return b"II*\0" + struct.pack("<I", strip + len(padded)) + padded + directory + struct.pack("<I", 0)
