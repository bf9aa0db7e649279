"""Read an ONNX file's metadata without the onnx package, which a device does not have.

Only the top level of the protobuf message is walked (field numbers of ``ModelProto`` in onnx.proto); the graph, which
is nearly all of the file, is skipped by seeking.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vitexport.errors import EngineBuildError

__all__ = ["read_metadata"]

# ModelProto: 14 = metadata_props (StringStringEntryProto: 1 = key, 2 = value).
_METADATA_PROPS = 14
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def read_metadata(path: Path) -> dict[str, str]:
    """Return the key-value metadata of an ONNX file.

    Raises:
        EngineBuildError: The file is no complete protobuf message.
    """
    metadata: dict[str, str] = {}
    try:
        with path.open("rb") as stream:
            for number, length in _fields(stream, path.stat().st_size):
                if number == _METADATA_PROPS:
                    key, value = _entry(stream.read(length))
                    metadata[key] = value
                else:
                    stream.seek(length, 1)
    except (EOFError, UnicodeDecodeError) as error:
        raise EngineBuildError(
            f"'{path}' is not a complete ONNX file.", "Export it again, or copy it again as a whole."
        ) from error
    return metadata


def _fields(stream: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield number and length of every length-delimited field, the stream standing at its content."""
    fixed = {_FIXED64: 8, _FIXED32: 4}
    while stream.tell() < size:
        number, kind = divmod(_varint(stream), 8)
        if kind == _VARINT:
            _varint(stream)
        elif kind == _LENGTH or kind in fixed:
            length = fixed.get(kind) or _varint(stream)
            if stream.tell() + length > size:
                raise EOFError
            if kind in fixed:
                stream.seek(length, 1)
            elif length:
                yield number, length
        else:
            raise EOFError


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise EOFError


def _entry(data: bytes) -> tuple[str, str]:
    """Read a StringStringEntryProto."""
    fields = {1: "", 2: ""}
    position = 0
    while position < len(data):
        number = data[position] >> 3
        position += 1
        length = shift = 0
        while True:
            if position >= len(data):
                raise EOFError
            byte = data[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        fields[number] = data[position : position + length].decode()
        position += length
    return fields[1], fields[2]
