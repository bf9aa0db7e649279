"""What a runtime answered on real images, as data: an ``.npz`` file without pickle.

The device that runs an engine has no PyTorch, so PyTorch's answer travels with the bundle. Images are identified by the
SHA-256 of the exact input tensor, so that a different preprocessing can never be mistaken for the same input.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import BundleError
from vitexport.files import atomic_path
from vitexport.inputs.labels.targets import Target, read_targets
from vitexport.inputs.preprocess import PreprocessSpec, from_pixels
from vitexport.tensors import Array, TensorSpec

__all__ = ["Recording", "ReplayInputs", "input_hashes"]

_OUTPUT = "output:"


@dataclass(frozen=True)
class Recording:
    """Outputs of one runtime, one row per image.

    Attributes:
        runtime: Name of the runtime that answered.
        images: Image names, one per row.
        input_sha256: SHA-256 of each image's input tensor (dtype, shape, bytes).
        outputs: Output name to array ``[images, ...]``.
        not_run: Why nothing here could execute the model; there are no images then. Empty where it was executed.
    """

    runtime: str
    images: tuple[str, ...]
    input_sha256: tuple[str, ...]
    outputs: Mapping[str, Array]
    not_run: str = ""

    @classmethod
    def of_nothing(cls, reason: str) -> Recording:
        """Return what is recorded of a model that nothing here can execute."""
        return cls("", (), (), {}, reason)

    def save(self, path: Path) -> None:
        """Write the recording in one step, as compressed ``.npz``."""
        header = {
            "runtime": self.runtime,
            "images": self.images,
            "input_sha256": self.input_sha256,
            "not_run": self.not_run,
        }
        _save(path, header, {f"{_OUTPUT}{name}": array for name, array in self.outputs.items()})

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read a recording.

        Raises:
            BundleError: The file is missing or holds something else.
        """
        header, arrays = _load(path)
        outputs = {key.removeprefix(_OUTPUT): array for key, array in arrays.items() if key.startswith(_OUTPUT)}
        try:
            images, hashes = tuple(header["images"]), tuple(header["input_sha256"])
            return cls(header["runtime"], images, hashes, outputs, header.get("not_run", ""))
        except (KeyError, TypeError) as error:
            raise _unreadable(path, error) from error

    def select(self, images: Sequence[str]) -> Recording:
        """Return the rows of the named images, in that order; images that were not recorded are left out."""
        rows = {name: row for row, name in enumerate(self.images)}
        chosen = [rows[name] for name in images if name in rows]
        return Recording(
            self.runtime,
            tuple(self.images[row] for row in chosen),
            tuple(self.input_sha256[row] for row in chosen),
            {name: array[chosen] for name, array in self.outputs.items()},
            self.not_run,
        )


@dataclass(frozen=True)
class ReplayInputs:
    """Real inputs that travel with a bundle, so that any machine can repeat a recording.

    Attributes:
        images: Image names, one per row.
        pixels: uint8 ``[N, H, W, C]`` after resize and crop, in the model's channel order; normalizing them gives the
            exact float inputs.
        targets: What is true of each row (:data:`vitexport.inputs.labels.targets.Target`), or None when unlabelled.
    """

    images: tuple[str, ...]
    pixels: NDArray[np.uint8]
    targets: tuple[Target, ...] | None

    def save(self, path: Path) -> None:
        """Write in one step, as compressed ``.npz``."""
        header = {"images": self.images, "targets": self.targets}
        _save(path, header, {"pixels": self.pixels})

    def feed(self, tensor: TensorSpec, spec: PreprocessSpec, rows: slice = slice(None)) -> Array:
        """Return what a model takes for some rows: the pixels themselves, or normalized planes.

        Args:
            tensor: The model's input.
            spec: Preprocessing whose last step, the normalization, is still to be done.
            rows: Which rows.
        """
        return from_pixels(self.pixels[rows], spec, tensor)

    def feeds(self, tensor: TensorSpec, spec: PreprocessSpec, size: int) -> Iterator[Array]:
        """Yield :meth:`feed` for all rows, at most ``size`` at a time."""
        for start in range(0, len(self.images), size):
            yield self.feed(tensor, spec, slice(start, start + size))

    @classmethod
    def load(cls, path: Path) -> ReplayInputs:
        """Read the inputs.

        Raises:
            BundleError: The file is missing or holds something else.
        """
        header, arrays = _load(path)
        try:
            return cls(tuple(header["images"]), arrays["pixels"], read_targets(header["targets"]))
        except (KeyError, TypeError) as error:
            raise _unreadable(path, error) from error


def input_hashes(batch: Array) -> list[str]:
    """Return the SHA-256 of each row of a feed, over dtype, shape and bytes."""
    head = f"{batch.dtype.name}{batch.shape[1:]}".encode()
    return [hashlib.sha256(head + np.ascontiguousarray(row).tobytes()).hexdigest() for row in batch]


def _save(path: Path, header: Mapping[str, object], arrays: Mapping[str, Array]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files if key != "header"}
            return json.loads(str(data["header"])), arrays
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BundleError:
    return BundleError(f"Expected a recording at '{path}', found: {error!r}", "Run the recipe again to record it.")
