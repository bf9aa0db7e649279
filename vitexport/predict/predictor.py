"""Images in, classes with scores or a feature vector out; from a bundle, or a model file that carries its metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from PIL import Image
from typing_extensions import Self

from vitexport.bundle.metadata import ModelMetadata
from vitexport.bundle.target import resolve_target
from vitexport.closing import Closing
from vitexport.errors import BundleError, ImageError, InferenceError, VitexportError
from vitexport.inputs.preprocess import batch
from vitexport.predict.foreign import ClassNames, Preprocess, describe
from vitexport.predict.sources import ImageInput, is_one_image, to_image
from vitexport.runtimes import Runtime, RuntimeOptions, open_runtime
from vitexport.runtimes.record import run_rows
from vitexport.scoring import Scoring, score_outputs
from vitexport.tables import Table, Tabular
from vitexport.tensors import Array, TensorSpec, batch_limit
from vitexport.verification.select import choose_model

__all__ = ["ImageResult", "Prediction", "Predictor"]


@dataclass(frozen=True)
class Prediction:
    """One class of one image.

    Attributes:
        label: Class name; the class index as text where the model has no names.
        score: Probability, 0 to 1: by softmax among all classes, or by sigmoid of this label alone; the value itself of
            a regression.
    """

    label: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"label", "score"}``, ready for JSON."""
        return {"label": self.label, "score": self.score}


@dataclass(frozen=True, repr=False)
class ImageResult(Tabular):
    """What a model says about one image.

    Attributes:
        predictions: Best classes first; empty for a features model.
        features: Feature vector; empty for a classifier.
    """

    predictions: tuple[Prediction, ...] = ()
    features: tuple[float, ...] = ()

    @property
    def best(self) -> Prediction:
        """The class with the highest score.

        Raises:
            BundleError: The model gives feature vectors, not classes.
        """
        if not self.predictions:
            raise BundleError(
                f"Expected classes, found a feature vector of {len(self.features)} numbers.",
                "Read .features, or export the model with --task classify.",
            )
        return self.predictions[0]

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"predictions": [{"label", "score"}, ...]}`` or ``{"features": [...]}``, ready for JSON."""
        if self.features:
            return {"features": list(self.features)}
        return {"predictions": [prediction.to_dict() for prediction in self.predictions]}

    def tables(self) -> tuple[Table, ...]:
        """Return the classes with their scores, or the features."""
        if self.features:
            return (Table("", ("feature", "value"), tuple((str(i), f"{v:.6g}") for i, v in enumerate(self.features))),)
        return (Table("", ("class", "score"), tuple((p.label, f"{p.score:.4f}") for p in self.predictions)),)

    def __repr__(self) -> str:
        if self.features:
            return f"ImageResult({len(self.features)} features)"
        shown = [f"{prediction.label!r} {prediction.score:.4f}" for prediction in self.predictions[:5]]
        if len(self.predictions) > 5:
            shown.append(f"{len(self.predictions) - 5} more")
        return f"ImageResult({', '.join(shown)})"


class Predictor(Closing):
    """A model that takes images.

    :meth:`predict` does all of it. :meth:`prepare`, :meth:`infer` and :meth:`result` are its parts, for who batches
    images otherwise: preparing is safe from several threads, inferring where :attr:`concurrent` says so.

    Attributes:
        name: Name of the model, for people.
        variant: Name of the variant inside a bundle, or the file's name.
        sha256: Of the model; see :attr:`vitexport.bundle.bundle.Artifact.sha256`.
        metadata: Identity, preprocessing and class names.
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
        sha256: str,
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
        self.sha256 = sha256
        self.notes = notes

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        runtime: str | None = None,
        variant: str | None = None,
        options: RuntimeOptions | None = None,
        preprocess: Preprocess | None = None,
        class_names: ClassNames | str | None = None,
        scoring: Scoring | None = None,
    ) -> Self:
        """Open a bundle directory or a model file.

        Args:
            path: Bundle directory, or a model file; one that this package did not make needs ``preprocess``.
            runtime: Name of the runtime; None lets the file choose.
            variant: Which model of a bundle; None takes the last one that its checks accept.
            options: For the runtime.
            preprocess: What turns an image into the input of a file that does not say so itself: a
                :class:`~vitexport.inputs.preprocess.PreprocessSpec`, a mapping of its settings, or a JSON or YAML file
                of them, also a ``preprocessor_config.json`` of transformers.
            class_names: Names in the order of the outputs, or a file of them; None takes the model's own.
            scoring: ``softmax``, ``sigmoid`` or ``none``; None takes what the model says of itself.

        Raises:
            RecipeError: ``preprocess`` is given for a model that carries its own, or something given does not fit.
            BundleError: Nothing is there, no bundle, an altered one, one without an accepted model, or a file without
                its metadata.
            RuntimeBackendError: The runtime cannot open the model.
            MissingDependencyError: The runtime's package is not installed.
        """
        # Only the file that is opened needs checking, which choose_model() does.
        target = resolve_target(path, check_files=False)
        choice = choose_model(target, variant)
        opened = open_runtime(choice.path, runtime, options)
        try:
            metadata, notes = describe(target, opened, preprocess, class_names, scoring)
            name = Path(metadata.model.id).name or choice.variant if target.bundle is None else target.bundle.name
            notes = (*choice.notes, *notes)
            return cls(opened, metadata, name=name, variant=choice.variant, sha256=choice.sha256, notes=notes)
        except VitexportError:
            opened.close()
            raise

    @property
    def version(self) -> str:
        """First 12 hex digits of :attr:`sha256`."""
        return self.sha256[:12]

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
        """Whether the model gives classes; otherwise it gives a feature vector."""
        return self.metadata.model.task == "classify"

    @property
    def gives_maps(self) -> bool:
        """Whether the model gives a map of the image: classes or depth by pixel."""
        return self.metadata.model.task in ("segment", "depth")

    @cached_property
    def output(self) -> TensorSpec:
        """The output with one vector per image; a features model may have token outputs beside it."""
        vectors = next((spec for spec in self.runtime.outputs if len(spec.shape) == 2), None)
        if vectors is None:
            outputs = ", ".join(spec.describe() for spec in self.runtime.outputs)
            folder = "`vitexport predict ... -o DIR` writes its maps. " if self.gives_maps else ""
            raise BundleError(
                f"Expected '{self.name}' to have an output with one vector per image, found {outputs}.",
                f"{folder}Ask for that output itself: through /v2 of `vitexport serve`, or with a runtime of your own.",
            )
        return vectors

    def prepare(self, image: Image.Image) -> Array:
        """Preprocess one image into one row of the model's input: float ``[C, H, W]`` or uint8 ``[H, W, C]``."""
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
            InferenceError: The model failed, or its output holds NaN or infinity.
        """
        return self.vectors(self.run(rows if isinstance(rows, np.ndarray) else np.stack(rows)))

    def run(self, feed: Array, size: int | None = None) -> dict[str, Array]:
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
        vectors = outputs[self.output.name]
        if not np.isfinite(vectors).all():
            raise InferenceError(
                f"Expected finite numbers from '{self.name}', found NaN or infinity.",
                "Check the bundle with `vitexport verify`.",
            )
        return vectors

    def label(self, index: int) -> str:
        """Return the name of a class."""
        return self.metadata.class_names[index] if index < len(self.metadata.class_names) else str(index)

    def rank(self, logits: Array, top: int | None = None) -> tuple[Prediction, ...]:
        """Turn one row of logits into classes, highest score first; ties in class order.

        The scores are those of the model's own kind of head, as ``transformers.pipeline`` gives them: a softmax over
        the classes, a sigmoid for each label of several or for a single one, or the values of a regression.

        Args:
            logits: ``[classes]``.
            top: How many; None for all.
        """
        scores = score_outputs(logits, self.metadata.scoring)
        order = np.argsort(-scores, kind="stable")[:top]
        return tuple(Prediction(self.label(int(index)), float(scores[index])) for index in order)

    def result(self, vector: Array, top: int | None = 5) -> ImageResult:
        """Turn one row of :meth:`infer` into what it says.

        Args:
            vector: Logits ``[classes]`` or features ``[dimension]``.
            top: Classes to keep, best first; None for all. A features model has none.
        """
        if self.classifies:
            return ImageResult(predictions=self.rank(vector, top))
        return ImageResult(features=tuple(float(value) for value in vector))

    # A path as text is a sequence of texts as well; the first signature is then meant.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: ImageInput, top: int | None = 5, *, batch: int = 16
    ) -> ImageResult: ...
    @overload
    def predict(self, images: Iterable[ImageInput], top: int | None = 5, *, batch: int = 16) -> list[ImageResult]: ...
    def predict(
        self, images: ImageInput | Iterable[ImageInput], top: int | None = 5, *, batch: int = 16
    ) -> ImageResult | list[ImageResult]:
        """Classify images, or compute their features.

        Args:
            images: One image gives one result, several give a list in their order. An image is the path of a file
                (``str`` or ``Path``), the bytes of one (JPEG, PNG, WebP, BMP, TIFF or PPM), a Pillow image, or a uint8
                or uint16 array ``[H, W, 3]`` in RGB (``[H, W, 4]`` RGBA, ``[H, W]`` grey), of any size; it is turned
                upright, resized, cropped and normalized as the model needs it.
            top: Classes per image, best first; None for all.
            batch: Images per run, and images decoded at one time.

        Raises:
            ImageError: An image is missing, damaged or too large, or its values have no known range, as floats have.
            InferenceError: The model failed, or its output holds NaN or infinity.
        """
        if batch < 1 or (top is not None and top < 1):
            raise ImageError(f"Expected top and batch of at least 1, found {top} and {batch}.", "Leave them out.")
        if is_one_image(images) or not isinstance(images, Iterable):
            image = to_image(cast(ImageInput, images))
            return self.result(self.infer([self.prepare(image)])[0], top)
        waiting = enumerate(cast("Iterable[ImageInput]", images))
        results: list[ImageResult] = []
        while rows := [self.prepare(to_image(image, name=f"image {i}")) for i, image in islice(waiting, batch)]:
            results += [self.result(vector, top) for vector in self.infer(rows)]
        return results

    def require_classes(self) -> None:
        """Raise a BundleError unless the model classifies."""
        if self.gives_maps:
            raise BundleError(
                f"Expected a classifier, but '{self.name}' gives maps ({self.metadata.model.task}).",
                "Write the maps to a folder with `vitexport predict ... -o DIR`.",
            )
        if not self.classifies:
            raise BundleError(
                f"Expected a classifier, but '{self.name}' gives feature vectors.",
                "Write the vectors to a file with `vitexport predict ... -o FILE`, or export with --task classify.",
            )

    def __repr__(self) -> str:
        return f"Predictor({self.name!r}, variant {self.variant!r}, {self.runtime.name}, {self.tensor.describe()})"

    def close(self) -> None:
        """Release the runtime."""
        self.runtime.close()
