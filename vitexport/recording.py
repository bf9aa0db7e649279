"""What a runtime answered on real images, as data: an ``.npz`` file without pickle.

The device that runs an engine has no PyTorch, so PyTorch's answer travels with the bundle. Images are identified by the
SHA-256 of the exact input tensor, so that a different preprocessing can never be mistaken for the same input.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitexport.errors import BundleError
from vitexport.files import atomic_path
from vitexport.tensors import Array

__all__ = ["Recording", "input_hashes"]


@dataclass(frozen=True)
class Recording:
    """Outputs of one runtime, one row per image.

    Attributes:
        runtime: Name of the runtime that answered.
        images: Image names, one per row.
        input_sha256: SHA-256 of each image's input tensor (dtype, shape, bytes).
        outputs: Output name to array ``[images, ...]``.
    """

    runtime: str
    images: tuple[str, ...]
    input_sha256: tuple[str, ...]
    outputs: Mapping[str, Array]

    def save(self, path: Path) -> None:
        """Write the recording in one step, as compressed ``.npz``."""
        header = {"runtime": self.runtime, "images": self.images, "input_sha256": self.input_sha256}
        arrays = {f"output:{name}": array for name, array in self.outputs.items()}
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read a recording.

        Raises:
            BundleError: The file is missing or no recording.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                header = json.loads(str(data["header"]))
                outputs = {key.removeprefix("output:"): data[key] for key in data.files if key.startswith("output:")}
                return cls(header["runtime"], tuple(header["images"]), tuple(header["input_sha256"]), outputs)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"Expected a recording at '{path}', found: {error}", "Run the recipe again to record it."
            ) from error


def input_hashes(batch: Array) -> list[str]:
    """Return the SHA-256 of each row of a feed, over dtype, shape and bytes."""
    head = f"{batch.dtype.name}{batch.shape[1:]}".encode()
    return [hashlib.sha256(head + np.ascontiguousarray(row).tobytes()).hexdigest() for row in batch]
