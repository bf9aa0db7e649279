"""What a model is, apart from its weights: identity, inputs and outputs, preprocessing, class names.

An exported ONNX file carries this as metadata (:meth:`ModelMetadata.to_metadata`), so that a single file is enough to
predict, quantize or verify; an engine carries it in its sidecar.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pydantic import ValidationError

from vitexport.errors import BundleError
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.preprocess import PreprocessSpec
from vitexport.scoring import Head, Scoring, Task
from vitexport.tensors import TensorSpec

__all__ = ["ModelMetadata", "ModelSpec"]

_PREFIX = "vitexport."


@dataclass(frozen=True)
class ModelSpec:
    """Identity and interface of a model.

    Attributes:
        source: Where it came from: ``huggingface`` or ``timm``.
        id: Hub id, model name or directory name; never an absolute path.
        revision: Hub commit or ``sha256:`` content hash of the weights.
        family: Architecture family, e.g. ``vit``, ``beit``, ``dinov2``.
        task: ``classify`` (logits), ``segment`` or ``depth`` (maps), or ``features``.
        inputs: Model inputs.
        outputs: Model outputs.
    """

    source: str
    id: str
    revision: str
    family: str
    task: Task
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> ModelSpec:
        """Build a spec from what :func:`dataclasses.asdict` and JSON made of one."""
        fields = dict(data)
        for key in ("inputs", "outputs"):
            specs = fields[key]
            assert isinstance(specs, list | tuple)
            fields[key] = tuple(TensorSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in specs)
        return cls(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModelMetadata:
    """Everything a model file needs beside its weights.

    Attributes:
        model: Identity and interface.
        preprocess: What turns an image into its input, or None for a file this package did not export.
        class_names: Class names by output index; empty when the model has none.
        scoring: What turns a classifier's logits into scores; means nothing for other tasks.
        history: What made the file: one entry per stage, oldest first, e.g. ``{"stage": "export", "torch": "2.15.0"}``.
        synsets: WordNet ids of the classes by output index, of ImageNet models; empty for others. They travel with the
            model because a device has nothing else to look them up in.
    """

    model: ModelSpec
    preprocess: PreprocessSpec
    class_names: tuple[str, ...] = ()
    scoring: Scoring = "softmax"
    history: tuple[Mapping[str, str], ...] = field(default=())
    synsets: tuple[str, ...] = ()

    @property
    def head(self) -> Head:
        """How the outputs are read, with labels there from a score of 0.5."""
        return Head(self.model.task, self.scoring)

    @property
    def classes(self) -> Classes | None:
        """What labels are matched to; None for a model that is no classifier."""
        logits = next((output for output in self.model.outputs if output.name == "logits"), self.model.outputs[0])
        count = logits.shape[-1] if len(logits.shape) == 2 else None
        if self.model.task != "classify" or not isinstance(count, int):
            return None
        return Classes(count, self.class_names, self.synsets, self.scoring)

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata as string key-value pairs for ONNX ``metadata_props``; values are JSON."""
        return {
            f"{_PREFIX}model": json.dumps(asdict(self.model)),
            f"{_PREFIX}preprocess": self.preprocess.model_dump_json(),
            f"{_PREFIX}class_names": json.dumps(list(self.class_names), ensure_ascii=False),
            f"{_PREFIX}scoring": json.dumps(self.scoring),
            f"{_PREFIX}history": json.dumps([dict(entry) for entry in self.history]),
            **({f"{_PREFIX}synsets": json.dumps(self.synsets)} if self.synsets else {}),
        }

    @staticmethod
    def is_in(metadata: Mapping[str, str]) -> bool:
        """Return whether the key-value pairs of a file hold any of this."""
        return f"{_PREFIX}model" in metadata

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, where: str) -> ModelMetadata:
        """Read the metadata back from ONNX metadata.

        Args:
            metadata: Key-value pairs of the file.
            where: Name of the file, for the error message.

        Raises:
            BundleError: The file has no metadata, or one that cannot be read.
        """
        try:
            return cls(
                model=ModelSpec.from_dict(json.loads(metadata[f"{_PREFIX}model"])),
                preprocess=PreprocessSpec.model_validate_json(metadata[f"{_PREFIX}preprocess"]),
                class_names=tuple(json.loads(metadata[f"{_PREFIX}class_names"])),
                scoring=json.loads(metadata[f"{_PREFIX}scoring"]),
                history=tuple(json.loads(metadata[f"{_PREFIX}history"])),
                synsets=tuple(json.loads(metadata.get(f"{_PREFIX}synsets", "[]"))),
            )
        except KeyError as error:
            raise BundleError(
                f"Expected '{where}' to carry its preprocessing and class names, found no '{error.args[0]}'.",
                "Files made by `vitexport export` carry it; for another tool's, `vitexport predict`, `evaluate` "
                "and `serve` take --preprocess, --class-names and --scoring.",
            ) from error
        except (ValueError, TypeError, AssertionError, ValidationError) as error:
            raise BundleError(
                f"The metadata of '{where}' cannot be read: {error}",
                "The file was altered or comes from another version; export it again.",
            ) from error
