"""What a command or a function means by MODEL|BUNDLE: a bundle directory with its variants, or one model file.

Nothing else in the package tells the two apart. Which runtime opens a file is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from vitexport.bundle.bundle import BUNDLE_FILE, Artifact, Bundle
from vitexport.bundle.layout import is_bundle
from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import BundleError
from vitexport.files import as_path

__all__ = ["ModelFile", "Target", "resolve_target"]


@dataclass(frozen=True)
class ModelFile:
    """One file that a runtime can open.

    Attributes:
        name: Name of the variant; of a file that is no part of a bundle, its path as it was given.
        path: The file.
        artifact: What the bundle records of it; None for a file that is no part of one.
    """

    name: str
    path: Path
    artifact: Artifact | None = None

    @property
    def is_onnx(self) -> bool:
        """Whether it is a graph, and not an engine or a program of PyTorch."""
        return self.path.suffix == ".onnx"


@dataclass(frozen=True)
class Target:
    """What a path means.

    Attributes:
        path: As it was given.
        bundle: The opened bundle; None for a model file.
        models: The variants of the bundle in the order they were made, or the one file.
    """

    path: Path
    bundle: Bundle | None
    models: tuple[ModelFile, ...]

    def model(self, name: str) -> ModelFile:
        """Return the variant of that name.

        Raises:
            BundleError: The bundle has no such variant, or the target is a file, which has none to choose from.
        """
        if self.bundle is None:
            raise BundleError(
                f"Expected a bundle to choose the variant '{name}' from, found the file '{self.path}'.",
                "Leave the variant (--variant) out.",
            )
        named = next((model for model in self.models if model.name == name), None)
        if named is None:
            names = ", ".join(model.name for model in self.models) or "none"
            raise BundleError(
                f"Expected a model named '{name}' in '{self.path}', found {names}.", "Choose one with --variant."
            )
        return named

    def onnx_file(self) -> ModelFile:
        """Return the one file that this is.

        Raises:
            BundleError: It is no ONNX file.
        """
        (model,) = self.models
        if not model.is_onnx:
            raise BundleError(f"Expected an ONNX model or a bundle, found '{self.path}'.", "Give an .onnx file.")
        return model

    def float_model(self) -> ModelFile:
        """Return the last float32 ONNX file of a bundle, or the file itself, whatever its precision.

        Raises:
            BundleError: There is none.
        """
        if self.bundle is None:
            return self.onnx_file()
        floats = [m for m in self.models if m.is_onnx and m.artifact is not None and m.artifact.precision == "float32"]
        if not floats:
            raise BundleError(f"Expected a float model in '{self.path}', found none.", "Run its recipe to `simplify`.")
        return floats[-1]

    def metadata(self, carried: Mapping[str, str]) -> ModelMetadata:
        """Return identity, preprocessing and class names: the bundle's, or else those that the file carries.

        Args:
            carried: Key-value metadata of the file, as an opened runtime gives it.

        Raises:
            BundleError: The target is a file, and carries none.
        """
        if self.bundle is not None:
            return self.bundle.metadata
        return ModelMetadata.from_metadata(carried, where=str(self.path))


def resolve_target(path: str | PathLike[str], *, check_files: bool = True) -> Target:
    """Find out what a path means.

    Args:
        path: Bundle directory or model file.
        check_files: Compare the SHA-256 of every file of a bundle.

    Raises:
        BundleError: Nothing is there, the directory is no bundle, or a file of the bundle is missing or altered.
    """
    path = as_path(path, "a model or bundle")
    if path.is_file():
        return Target(path, None, (ModelFile(str(path), path),))
    if not path.is_dir():
        raise BundleError(
            f"Expected an ONNX file, an engine or a bundle, found nothing at '{path}'.", "Check the path."
        )
    if not is_bundle(path):
        raise BundleError(
            f"Expected an ONNX file, an engine or a bundle at '{path}', found a directory without {BUNDLE_FILE}.",
            "Make a bundle with `vitexport run RECIPE -o DIR`, or give an ONNX file.",
        )
    bundle = Bundle.open(path, check_files=check_files)
    models = tuple(ModelFile(artifact.name, bundle.path(artifact), artifact) for artifact in bundle.models)
    return Target(path, bundle, models)
