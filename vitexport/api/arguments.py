"""What several functions take in more than one form, and what they refuse before any work is done."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from vitexport.bundle.bundle import Bundle
from vitexport.errors import RecipeError
from vitexport.files import as_path

__all__ = ["onnx_output", "open_bundle", "require_positive"]


def open_bundle(bundle: str | PathLike[str]) -> Bundle:
    """Return an opened bundle; who uses a file of it checks that one file.

    Raises:
        BundleError: The directory is no bundle.
    """
    return bundle if isinstance(bundle, Bundle) else Bundle.open(as_path(bundle, "a bundle"), check_files=False)


def onnx_output(out: str | PathLike[str]) -> Path:
    """Return where an ONNX file shall be written.

    Raises:
        RecipeError: The name does not end with ``.onnx``: no runtime would open the file.
    """
    path = as_path(out, "the file to write")
    if path.suffix != ".onnx":
        raise RecipeError(f"Expected a name that ends with .onnx, found '{path}'.", f"Write to '{path}.onnx'.")
    return path


def require_positive(**numbers: float | None) -> None:
    """Check arguments that count or measure something; None is a default of its own.

    Raises:
        RecipeError: One is no number, or not above zero.
    """
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            raise RecipeError(f"Expected {name} to be a number above zero, found {value!r}.", "Give a positive number.")
