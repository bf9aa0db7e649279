"""Classes and scores of many images: returned, or written to a file by a job that can be killed and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import Any, overload

from vitexport.api.arguments import require_positive
from vitexport.api.progress import OnEvent, Progress, StepEvent, shown
from vitexport.errors import RecipeError
from vitexport.files import as_path, finite
from vitexport.machine import usable_cores
from vitexport.predict.batch import ChunkPredictor, Row, chunks, predict_chunks
from vitexport.predict.foreign import ClassNames, Preprocess
from vitexport.predict.job import JobResult, OnOpen, OnProgress, predict_to_file
from vitexport.predict.map_files import predict_to_folder
from vitexport.predict.results import row_to_json
from vitexport.predict.settings import Engine, JobSettings
from vitexport.predict.sources import expand_sources
from vitexport.scoring import Scoring
from vitexport.tables import Table, Tabular

__all__ = ["Predictions", "predict_files"]


@dataclass(frozen=True, repr=False)
class Predictions(Tabular):
    """One row for each image, in the order of the sources; iterates over its rows.

    Attributes:
        model: Name of the model.
        variant: Which model of the bundle, or the file's name.
        rows: What became of each image; one that could not be used has an ``error`` and nothing else.
        sha256: Of the model.
        notes: What a person should know of the choice, e.g. why a later variant was passed over.
    """

    model: str
    variant: str
    rows: tuple[Row, ...]
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows of images that could not be used."""
        return tuple(row for row in self.rows if row.error)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        rows = [finite(row_to_json(row)) for row in self.rows]
        identity = {"model": self.model, "variant": self.variant, "sha256": self.sha256, "notes": list(self.notes)}
        return {**identity, "results": rows}

    def tables(self) -> tuple[Table, ...]:
        """Return the classes of every image, then the length of feature vectors and the unusable images, if any."""
        classes = tuple(
            (row.image if position == 0 else "", prediction.label, f"{prediction.score:.4f}")
            for row in self.rows
            for position, prediction in enumerate(row.predictions)
        )
        vectors = tuple((row.image, f"{len(row.features)} numbers") for row in self.rows if row.features)
        errors = tuple((row.image, row.error) for row in self.failed)
        found = [Table("", ("image", "label", "score"), classes, text=("label",))] if classes or not self.rows else []
        found += [Table("", ("image", "features"), vectors)] if vectors else []
        found += [Table("could not be used", ("image", "why"), errors, text=("why",))] if errors else []
        return tuple(found)


@overload
def predict_files(
    model: str | PathLike[str],
    sources: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: None = None,
    *,
    top: int = ...,
    runtime: str | None = ...,
    variant: str | None = ...,
    preprocess: Preprocess | None = ...,
    class_names: ClassNames | str | None = ...,
    scoring: Scoring | None = ...,
    batch: int = ...,
    workers: int | None = ...,
    threads: int | None = ...,
    device: str = ...,
    engine: Engine = ...,
    ray_address: str | None = ...,
    overwrite: bool = ...,
    progress: Progress = ...,
    on_open: OnOpen | None = ...,
) -> Predictions: ...
@overload
def predict_files(
    model: str | PathLike[str],
    sources: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    top: int = ...,
    runtime: str | None = ...,
    variant: str | None = ...,
    preprocess: Preprocess | None = ...,
    class_names: ClassNames | str | None = ...,
    scoring: Scoring | None = ...,
    batch: int = ...,
    workers: int | None = ...,
    threads: int | None = ...,
    device: str = ...,
    engine: Engine = ...,
    ray_address: str | None = ...,
    overwrite: bool = ...,
    progress: Progress = ...,
    on_open: OnOpen | None = ...,
) -> JobResult: ...
def predict_files(
    model: str | PathLike[str],
    sources: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str] | None = None,
    *,
    top: int = 5,
    runtime: str | None = None,
    variant: str | None = None,
    preprocess: Preprocess | None = None,
    class_names: ClassNames | str | None = None,
    scoring: Scoring | None = None,
    batch: int = 16,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    engine: Engine = "local",
    ray_address: str | None = None,
    overwrite: bool = False,
    progress: Progress = False,
    on_open: OnOpen | None = None,
) -> Predictions | JobResult:
    """Classify image files, or compute features or maps, on all cores; with ``out``, as a job that can be resumed.

    Example::

        for row in vx.predict_files("out/quickstart", "calib/holdout"):
            print(row.image, row.predictions[0].label, row.predictions[0].score)
        vx.predict_files("out/quickstart", "calib/holdout", "results.csv", progress=True)

    Args:
        model: Bundle, its directory, or a model file.
        sources: One or several of: an image, a folder (searched recursively), a pattern such as ``photos/**/*.jpg``, a
            ``.txt`` file with one path per line.
        out: Results file, ``.jsonl``, ``.csv`` or ``.parquet``; a job killed earlier goes on where it stopped. For a
            segmentation or depth model a folder: a PNG map for each image and their index. None returns the rows.
        top: Classes per image, best first.
        runtime: Runtime name; None lets the file choose.
        variant: Which model of a bundle; None takes the last one its checks accept.
        preprocess: What turns an image into the input of a file that does not say so itself: a PreprocessSpec, a
            mapping, or a JSON or YAML file, also a ``preprocessor_config.json`` of transformers.
        class_names: Names in the order of the outputs, or a file of them; None takes the model's own.
        scoring: ``softmax``, ``sigmoid`` or ``none``; None takes what the model says of itself.
        batch: Images per run.
        workers: Runs at the same time: threads, or Ray actors; None takes one per core.
        threads: Threads of each run; None takes one on a CPU.
        device: ``cpu`` or ``cuda:N``.
        engine: ``local``, or ``ray`` for a job on a Ray cluster.
        ray_address: Cluster to join; None starts one on this machine.
        overwrite: Replace existing results, and drop another job's journal.
        progress: True shows a bar; a function gets events with the fraction of images done.
        on_open: Called with the opened model before the first image.

    Returns:
        The rows; with ``out``, what the job did. An image that cannot be used is a result, not an exception.

    Raises:
        ImageError: A folder holds no image, a pattern matches nothing, or a list cannot be read.
        BundleError: The model cannot be used.
        InferenceError: The model failed; what a job has done stays in its journal.
        MissingDependencyError: The runtime, pyarrow or ray is not installed.
        RecipeError: A number is less than 1, ``engine="ray"`` or ``overwrite`` is given without ``out``, or a Ray
            address without ``engine="ray"``.
        VitexportError: The results file exists, its ending is unknown, or the journal is another job's.
    """
    require_positive(top=top, batch=batch, workers=workers, threads=threads)
    if engine not in ("local", "ray"):
        raise RecipeError(f"Expected engine to be 'local' or 'ray', found '{engine}'.", "Choose one of them.")
    if out is None and (engine == "ray" or overwrite):
        raise RecipeError("Expected a results file with engine='ray' or overwrite, found none.", "Pass out=...")
    if ray_address is not None and engine != "ray":
        raise RecipeError(
            "Expected engine='ray' with the address of a Ray cluster, found 'local'.", "Leave the address out."
        )
    settings = JobSettings(
        model=as_path(model, "a model or bundle"),
        runtime=runtime,
        variant=variant,
        preprocess=preprocess,
        class_names=class_names,
        scoring=scoring,
        top=top,
        batch=batch,
        workers=workers,
        threads=threads,
        device=device,
        engine=engine,
        address=ray_address,
    )
    paths = expand_sources([sources] if isinstance(sources, str | PathLike) else sources)
    with shown(progress, ("predict",)) as show:
        tell, opened = _Counter(show), on_open or _ignore
        if out is None:
            result: Predictions | JobResult = _rows(settings, paths, tell, opened)
        elif not (folder := as_path(out, "a results file or folder")).suffix:
            if engine == "ray":
                raise RecipeError("Expected engine='local' for a folder of maps, found 'ray'.", "Leave the engine out.")
            result = predict_to_folder(settings, paths, folder, overwrite=overwrite, on_open=opened, on_progress=tell)
        else:
            result = predict_to_file(
                settings, paths, as_path(out, "a results file"), overwrite=overwrite, on_open=opened, on_progress=tell
            )
        show(StepEvent("predict", "done", f"{len(paths)} image{'s' * (len(paths) != 1)}"))
    return result


def _rows(settings: JobSettings, paths: Sequence[Path], tell: OnProgress, on_open: OnOpen) -> Predictions:
    rows: list[Row] = []
    with settings.open() as predictor:
        on_open(predictor)
        predict = ChunkPredictor(predictor, settings.top)
        tell(0, len(paths))
        for result in predict_chunks(predict, chunks(paths, settings.batch), settings.workers or usable_cores()):
            rows += result.rows
            tell(len(rows), len(paths))
        return Predictions(predictor.name, predictor.variant, tuple(rows), predictor.sha256, predictor.notes)


class _Counter:
    """Counts of images as events, with the time that is left; images of a killed run, told first, took no time."""

    def __init__(self, show: OnEvent, clock: Callable[[], float] = time.perf_counter) -> None:
        self._show = show
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._first is None:
            self._first = done, self._clock()
        before, start = self._first
        left = ""
        if done > before:
            seconds = (self._clock() - start) / (done - before) * (total - done)
            left = f", {timedelta(seconds=round(seconds))} left"
        self._show(StepEvent("predict", "running", f"{done}/{total}{left}", done / total if total else 1.0))


def _ignore(predictor: object) -> None:
    """Do nothing with an opened model."""
