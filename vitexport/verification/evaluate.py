"""What models score on labelled images, and whether a difference between them is more than noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from vitexport.bundle.metadata import ModelMetadata
from vitexport.bundle.target import Target
from vitexport.errors import ImageError, NoKernelError
from vitexport.inputs.images import batches
from vitexport.inputs.labels.classes import Classes
from vitexport.inputs.labels.find import find_labels
from vitexport.inputs.labels.rows import Columns
from vitexport.inputs.labels.targets import Labels, class_targets
from vitexport.inputs.preprocess import PreprocessSpec
from vitexport.runtimes import Runtime, open_runtime
from vitexport.runtimes.record import record
from vitexport.scoring import Head
from vitexport.tables import Table, Tabular
from vitexport.tensors import Array
from vitexport.verification.accuracy import PairedDifference, compare_top1
from vitexport.verification.scores import Score, score_answers

__all__ = ["Describe", "EvaluatedModel", "Evaluation", "carried", "evaluate_models"]

Describe: TypeAlias = Callable[[Target, Runtime], tuple[ModelMetadata, tuple[str, ...]]]
"""What an opened model of a target is, and what a person should know about that."""


def carried(target: Target, runtime: Runtime) -> tuple[ModelMetadata, tuple[str, ...]]:
    """Describe a model by what it carries, with nothing to say.

    Raises:
        BundleError: It carries nothing.
    """
    return target.metadata(runtime.metadata), ()


@dataclass(frozen=True)
class EvaluatedModel:
    """One model's score.

    Attributes:
        name: Name of the variant, or the file.
        accuracy: What its kind of head is scored by; None where it was not run.
        difference: Of top-1 against the first model that was run, image by image; None for that one and other heads.
        not_run: Why no runtime here can execute it; empty where one did.
    """

    name: str
    accuracy: Score | None
    difference: PairedDifference | None
    not_run: str = ""


@dataclass(frozen=True, repr=False)
class Evaluation(Tabular):
    """Scores of all models on the same images.

    Attributes:
        folder: Where the images are.
        images: How many there are.
        models: In the order they were made.
        labels: How the labels were matched to the model's classes.
        notes: What a person should know about how the models were read.
    """

    folder: Path
    images: int
    models: tuple[EvaluatedModel, ...]
    labels: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        rows = []
        for model in self.models:
            row: dict[str, Any] = {"model": model.name}
            row |= {"not_run": model.not_run} if model.accuracy is None else asdict(model.accuracy)
            if model.difference is not None:
                row["difference"] = asdict(model.difference)
            rows.append(row)
        return {"labels": self.labels, "notes": list(self.notes), "results": rows}

    def tables(self) -> tuple[Table, ...]:
        """Return one row per model, then those that were not run."""
        scored = [(model, model.accuracy) for model in self.models if model.accuracy is not None]
        names = [name for name, _ in scored[0][1].figures()] if scored else []
        changes = ("change", "95 % interval", "McNemar p") if any(model.difference for model, _ in scored) else ()
        rows = tuple(
            (model.name, *(text for _, text in accuracy.figures()), *(_change(model) if changes else ()))
            for model, accuracy in scored
        )
        title = f"{self.images} images in {self.folder} (labels: {self.labels})"
        measured = Table(title, ("model", *names, *changes), rows)
        others = tuple((model.name, model.not_run) for model in self.models if model.accuracy is None)
        reasons = Table("", ("model", "not run here"), others, text=("not run here",))
        return (measured, reasons) if others else (measured,)


def _change(model: EvaluatedModel) -> tuple[str, str, str]:
    found = model.difference
    if found is None:
        return "", "", ""
    low, high = found.interval_points
    return f"{0.0 - found.drop_points:+.2f}", f"{0.0 - high:+.2f} to {0.0 - low:+.2f}", f"{found.p_value:.2g}"


def evaluate_models(
    target: Target,
    folder: Path,
    paths: Sequence[Path],
    *,
    labels: Path | None = None,
    columns: Columns = Columns(),  # noqa: B008  # frozen
    describe: Describe = carried,
    threshold: float = 0.5,
    batch: int = 16,
    runtime: str | None = None,
) -> Evaluation:
    """Score every model of a target that a runtime here can execute.

    Args:
        target: A model file, or a bundle.
        folder: Where the images are.
        paths: The images.
        labels: File with their classes; None looks beside the images, then for class folders.
        columns: Which columns of a table of labels to read.
        describe: Says what an opened model is; of a file of another tool, what it was told.
        threshold: Sigmoid score from which a label counts as there.
        batch: Images per run.
        runtime: Runtime name; None takes each file's own.

    Raises:
        ImageError: The images have no labels, or such as do not fit the model, or a model gives no class scores.
        NoKernelError: No runtime here can execute any of the models.
    """
    found: list[EvaluatedModel] = []
    first: Array | None = None
    matched: Labels | None = None
    head = Head()
    notes: tuple[str, ...] = ()
    refusal: NoKernelError | None = None
    for model in target.models:
        try:
            with open_runtime(model.path, runtime) as opened:
                metadata, remarks = describe(target, opened)
                notes = tuple(dict.fromkeys((*notes, *remarks)))
                if matched is None:
                    matched = _labels(folder, paths, _classes(metadata, model.path), labels, columns)
                    head = replace(metadata.head, threshold=threshold)
                scores = _scores(opened, metadata.preprocess, paths, batch, model.path, head)
        except NoKernelError as error:
            refusal = error
            found.append(EvaluatedModel(model.name, None, None, error.message))
            continue
        difference = None
        if first is not None and (classes_of_images := class_targets(matched.targets)) is not None:
            difference = compare_top1(first, scores, classes_of_images)
        found.append(EvaluatedModel(model.name, score_answers(scores, matched.targets, head), difference))
        first = scores if first is None else first
    if refusal is not None and first is None:
        raise refusal
    return Evaluation(folder, len(paths), tuple(found), str(matched), notes)


def _classes(metadata: ModelMetadata, model: Path) -> Classes:
    if metadata.classes is None:
        raise ImageError(
            f"Expected class scores from '{model}', found a model for '{metadata.model.task}'.",
            "Only classifiers can be evaluated on labels; export with --task classify.",
        )
    return metadata.classes


def _labels(folder: Path, paths: Sequence[Path], classes: Classes, file: Path | None, columns: Columns) -> Labels:
    found = find_labels(folder, paths, classes, file, columns)
    if found is None:
        raise ImageError(
            f"Expected labels for the images in '{folder}', found none.",
            "Give --labels FILE, put a manifest.json beside the images, or use one folder per class.",
        )
    return found


def _scores(
    runtime: Runtime, spec: PreprocessSpec, paths: Sequence[Path], batch: int, model: Path, head: Head
) -> Array:
    recording = record(runtime, [str(path) for path in paths], batches(paths, spec, runtime.inputs[0], batch))
    scores = head.main_output(recording.outputs)
    if scores is None:
        raise ImageError(
            f"Expected class scores from '{model}', found the outputs {', '.join(recording.outputs)}.",
            "Only classifiers can be evaluated on labels; export with --task classify.",
        )
    return scores
