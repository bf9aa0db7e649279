"""Images in, labels and scores out, from a bundle or from a single model file that carries its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Self

from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import is_bundle
from vitexport.bundle.metadata import ModelMetadata
from vitexport.errors import BundleError, InferenceError
from vitexport.inputs.preprocess import batch
from vitexport.runtimes import Runtime, RuntimeOptions, open_runtime
from vitexport.runtimes.record import run_rows
from vitexport.tensors import Array, TensorSpec, batch_limit
from vitexport.verify.select import choose_variant

__all__ = ["Prediction", "Predictor", "softmax"]


@dataclass(frozen=True)
class Prediction:
    """One class of one image.

    Attributes:
        label: Class name; the class index as text where the model has no names.
        score: Softmax probability, 0 to 1.
    """

    label: str
    score: float


def softmax(logits: Array) -> NDArray[np.float64]:
    """Return the softmax over the last axis, in double precision, shifted by the maximum so that nothing overflows."""
    values = np.asarray(logits, dtype=np.float64)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


class Predictor:
    """A model that takes images.

    Preparing images is safe from several threads; :meth:`infer` is where :attr:`concurrent` says so.

    Attributes:
        name: Name of the model, for people.
        version: First 12 hex digits of the model file's SHA-256, or ``1`` for a single file.
        variant: Name of the variant inside a bundle, or the file's name.
        metadata: Identity, preprocessing and labels.
        runtime: The opened runtime.
        notes: What a person should know, e.g. that a later variant was rejected by its checks.
    """

    def __init__(
        self,
        runtime: Runtime,
        metadata: ModelMetadata,
        *,
        name: str,
        variant: str,
        version: str = "1",
        notes: tuple[str, ...] = (),
    ) -> None:
        if len(runtime.inputs) != 1:
            raise BundleError(
                f"Expected a model with one image input, '{name}' has {len(runtime.inputs)}.",
                "Export it with `vitexport export`.",
            )
        self.runtime = runtime
        self.metadata = metadata
        self.name = name
        self.variant = variant
        self.version = version
        self.notes = notes

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        runtime: str | None = None,
        variant: str | None = None,
        options: RuntimeOptions | None = None,
    ) -> Self:
        """Open a bundle directory or a model file.

        Args:
            path: Bundle directory, or a file made by this package.
            runtime: Name of the runtime; None lets the file choose.
            variant: Which model of a bundle; None takes the last one that its checks accept.
            options: For the runtime.

        Raises:
            BundleError: No bundle, an altered one, one without an accepted model, or a file without its metadata.
            RuntimeBackendError: The runtime cannot open the model.
            MissingDependencyError: The runtime's package is not installed.
        """
        if path.is_dir():
            return cls._open_bundle(path, runtime, variant, options)
        if variant is not None:
            raise BundleError(
                f"--variant chooses inside a bundle, but '{path}' is no directory.", "Leave --variant out."
            )
        opened = open_runtime(path, runtime, options)
        try:
            metadata = ModelMetadata.from_metadata(opened.metadata, where=str(path))
            return cls(opened, metadata, name=Path(metadata.model.id).name or path.stem, variant=path.stem)
        except BundleError:
            opened.close()
            raise

    @classmethod
    def _open_bundle(cls, path: Path, runtime: str | None, variant: str | None, options: RuntimeOptions | None) -> Self:
        if not is_bundle(path):
            raise BundleError(
                f"Expected a model file or a bundle at '{path}', found a directory without bundle.json.",
                "Make a bundle with `vitexport run RECIPE -o DIR`, or give an ONNX file.",
            )
        bundle = Bundle.open(path, check_files=False)
        choice = choose_variant(bundle, variant)
        notes = tuple(f"not used, its checks failed: {line}" for line in choice.rejected)
        opened = open_runtime(bundle.path(choice.artifact), runtime, options)
        return cls(
            opened,
            bundle.metadata,
            name=bundle.name,
            variant=choice.artifact.name,
            version=choice.artifact.file.sha256[:12],
            notes=notes,
        )

    @property
    def tensor(self) -> TensorSpec:
        """The model's input."""
        return self.runtime.inputs[0]

    @property
    def concurrent(self) -> bool:
        """Whether :meth:`infer` may be called from several threads at once."""
        return self.runtime.concurrent

    @property
    def classifies(self) -> bool:
        """Whether the model answers with classes; otherwise it answers with a feature vector."""
        return self.metadata.model.task == "classify"

    @cached_property
    def output(self) -> TensorSpec:
        """The output with one vector per image; a features model may have token outputs beside it."""
        found = next((spec for spec in self.runtime.outputs if len(spec.shape) == 2), None)
        if found is None:
            outputs = ", ".join(spec.describe() for spec in self.runtime.outputs)
            raise BundleError(
                f"Expected '{self.name}' to have an output with one vector per image, found {outputs}.",
                "Ask for that output itself: through /v2 of `vitexport serve`, or with a runtime of your own.",
            )
        return found

    def prepare(self, image: Image.Image) -> Array:
        """Preprocess one image into one row of the model's input."""
        row: Array = batch([image], self.metadata.preprocess, self.tensor)[0]
        return row

    def infer(self, rows: Sequence[Array] | Array) -> Array:
        """Run the model on prepared rows.

        Args:
            rows: At least one.

        Returns:
            Logits ``[N, classes]`` or features ``[N, dimension]``.

        Raises:
            FeedMismatchError: A row does not fit the model.
            InferenceError: The model failed, or answered with NaN or infinity.
        """
        return self.vectors(self.answer(rows if isinstance(rows, np.ndarray) else np.stack(rows)))

    def answer(self, feed: Array, size: int | None = None) -> dict[str, Array]:
        """Run the model on a feed of any length and return all its outputs.

        Args:
            feed: At least one row of the model's input.
            size: At most so many rows per run. A model of a fixed batch size gets exactly that many, padded at the end.

        Raises:
            FeedMismatchError: A row does not fit the model.
            InferenceError: The model failed.
        """
        fixed = batch_limit(self.tensor)
        return run_rows(self.runtime, feed, fixed or size, pad=fixed is not None)

    def vectors(self, outputs: Mapping[str, Array]) -> Array:
        """Return the output with one vector per image.

        Raises:
            InferenceError: It holds NaN or infinity.
        """
        found = outputs[self.output.name]
        if not np.isfinite(found).all():
            raise InferenceError(
                f"'{self.name}' answered with NaN or infinity.", "Check the bundle with `vitexport verify`."
            )
        return found

    def label(self, index: int) -> str:
        """Return the name of a class."""
        return self.metadata.class_names[index] if index < len(self.metadata.class_names) else str(index)

    def rank(self, logits: Array, top: int | None = None) -> tuple[Prediction, ...]:
        """Turn one row of logits into classes, best first; ties in class order.

        Args:
            logits: ``[classes]``.
            top: How many; None for all.
        """
        scores = softmax(logits)
        order = np.argsort(-scores, kind="stable")[:top]
        return tuple(Prediction(self.label(int(index)), float(scores[index])) for index in order)

    def predict(self, images: Sequence[Image.Image], top: int | None = 5) -> list[tuple[Prediction, ...]]:
        """Classify images, all in one batch.

        Raises:
            BundleError: The model answers with features, not with classes.
        """
        self.require_classes()
        if not images:
            return []
        return [self.rank(row, top) for row in self.infer([self.prepare(image) for image in images])]

    def require_classes(self) -> None:
        """Raise a BundleError unless the model classifies."""
        if not self.classifies:
            raise BundleError(
                f"'{self.name}' answers with feature vectors, not with classes.",
                "Write the vectors to a file with `vitexport predict ... -o FILE`, or export with --task classify.",
            )

    def close(self) -> None:
        """Release the runtime."""
        self.runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
