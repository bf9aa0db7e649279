"""What several functions take in more than one form, and numbers that cannot be less than one."""

from __future__ import annotations

from pathlib import Path

from vitexport.bundle.bundle import Bundle
from vitexport.errors import RecipeError

__all__ = ["open_bundle", "path_of", "require_positive"]


def open_bundle(bundle: str | Path | Bundle) -> Bundle:
    """Return an opened bundle; who uses a file of it checks that one file.

    Raises:
        BundleError: The directory is no bundle.
    """
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, check_files=False)


def path_of(model: str | Path | Bundle) -> Path:
    """Return the path of a model file or bundle directory."""
    return model.root if isinstance(model, Bundle) else Path(model)


def require_positive(**numbers: int | None) -> None:
    """Check arguments that count something; None is a default of its own.

    Raises:
        RecipeError: One is less than 1.
    """
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise RecipeError(f"Expected {name} to be at least 1, found {value}.", "Give a positive number.")
