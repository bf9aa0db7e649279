"""Weight files: which ones, are they trusted, and their content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vitexport.errors import ModelSourceError
from vitexport.files import sha256_file

__all__ = ["content_revision", "is_pickle", "refuse_pickle", "weight_files"]

_PICKLES = (".bin", ".pth", ".pt", ".ckpt")


def weight_files(folder: Path, *, allow_pickle: bool) -> tuple[Path, ...]:
    """Return the weight files of a checkpoint directory: safetensors, or pickles if they were asked for.

    Raises:
        ModelSourceError: There are none, or only pickles and they were not asked for.
    """
    safe = tuple(sorted(folder.glob("*.safetensors")))
    if safe:
        return safe
    pickles = tuple(sorted(path for path in folder.iterdir() if path.suffix in _PICKLES))
    if not pickles:
        raise ModelSourceError(
            f"Expected weights (*.safetensors) in '{folder}', found none.",
            "Save the model with save_pretrained() or download the complete checkpoint.",
        )
    if not allow_pickle:
        refuse_pickle(pickles[0])
    return pickles


def is_pickle(path: Path) -> bool:
    """Return whether a weight file is anything but safetensors."""
    return path.suffix != ".safetensors"


def refuse_pickle(path: Path) -> NoReturn:
    """Raise the error for a pickle that was not asked for.

    Raises:
        ModelSourceError: Always.
    """
    raise ModelSourceError(
        f"The weights '{path}' are a pickle, which can run code when it is loaded.",
        "Convert them to safetensors, or pass `--allow-pickle` (`model.allow_pickle: true` in a recipe): they are then "
        "loaded with weights_only=True.",
    )


def content_revision(files: Sequence[Path]) -> str:
    """Return ``sha256:`` and the hash of one weight file, or of the hashes of several in the order of their names."""
    hashes = [sha256_file(path) for path in sorted(files)]
    if len(hashes) == 1:
        return f"sha256:{hashes[0]}"
    return f"sha256:{hashlib.sha256(''.join(hashes).encode()).hexdigest()}"
