"""What a person may name as input of a prediction: images, folders, patterns, and lists of paths."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitexport.errors import ImageError
from vitexport.inputs.images import list_images

__all__ = ["expand_sources"]


def expand_sources(sources: Sequence[str]) -> tuple[Path, ...]:
    """Turn sources into image paths, in order.

    Args:
        sources: Each an image file, a folder (searched recursively), a pattern such as ``photos/**/*.jpg``, or a
            ``.txt`` file with one path per line (relative to that file; empty lines and ``#`` comments are left out).

    Raises:
        ImageError: A folder holds no image, a pattern matches nothing, or a list cannot be read.
    """
    return tuple(path for source in sources for path in _expand(source))


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
