"""A batch job: sources to a results file, with a journal so that it can be killed and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vitexport.errors import VitexportError
from vitexport.predict.batch import (
    Chunk,
    ChunkPredictor,
    ChunkResult,
    chunks,
    core_count,
    parallel_options,
    predict_chunks,
)
from vitexport.predict.journal import Journal, job_identity, journal_path
from vitexport.predict.predictor import Predictor
from vitexport.predict.results import check_format, write_results

__all__ = ["Engine", "JobResult", "JobSettings", "predict_to_file"]

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class JobSettings:
    """How a batch job runs.

    Attributes:
        model: Bundle directory or model file.
        runtime: Name of the runtime; None lets the file choose.
        variant: Which model of a bundle; None takes the last accepted one.
        top: Classes per image.
        batch: Images per chunk, which is the batch of one run.
        workers: Threads, or Ray actors; None takes one per core.
        threads: Threads of each runtime; None takes one on a CPU.
        device: ``cpu`` or ``cuda:N``.
        engine: ``local`` or ``ray``.
        address: Ray cluster to join; None starts one on this machine.
    """

    model: Path
    runtime: str | None = None
    variant: str | None = None
    top: int = 5
    batch: int = 16
    workers: int | None = None
    threads: int | None = None
    device: str = "cpu"
    engine: Engine = "local"
    address: str | None = None

    def open(self) -> Predictor:
        """Open the model for workers that share it."""
        return Predictor.open(
            self.model, runtime=self.runtime, variant=self.variant, options=parallel_options(self.threads, self.device)
        )


@dataclass(frozen=True)
class JobResult:
    """What a job did.

    Attributes:
        images: Images in the results.
        failed: Of these, images that could not be used.
        resumed: Images taken over from a killed run.
        reasons: The first few reasons of failures, as ``path: reason``.
    """

    images: int
    failed: int
    resumed: int
    reasons: tuple[str, ...]


class OnProgress(Protocol):
    """Called with how many images are done, failed ones included, and how many there are."""

    def __call__(self, done: int, total: int) -> None: ...


def predict_to_file(
    settings: JobSettings,
    paths: Sequence[Path],
    out: Path,
    *,
    overwrite: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> JobResult:
    """Predict files and write the results; a job killed earlier goes on where it stopped.

    Args:
        settings: Model and engine.
        paths: Images, in the order of the results.
        out: Results file, ``.jsonl``, ``.csv`` or ``.parquet``.
        overwrite: Replace existing results, and drop another job's journal.
        on_progress: Called after each chunk.

    Raises:
        VitexportError: The results file exists, its ending is unknown, or the journal is another job's.
        BundleError: The model cannot be used.
        InferenceError: The model failed; what is done stays in the journal.
        MissingDependencyError: pyarrow or ray is missing.
    """
    check_format(out)
    if out.exists() and not overwrite:
        raise VitexportError(f"'{out}' exists already.", "Use another -o file, or replace it with --overwrite.")
    work = chunks(paths, settings.batch)
    with settings.open() as predictor:
        identity = job_identity(
            work,
            {"model": predictor.version, "variant": predictor.variant, "top": settings.top, "batch": settings.batch},
        )
        with Journal(journal_path(out), identity, overwrite=overwrite) as journal:
            todo = tuple(chunk for chunk in work if chunk.index not in journal.done)
            resumed = len(paths) - sum(len(chunk.paths) for chunk in todo)
            done = resumed
            on_progress(done, len(paths))
            for result in _engine(settings, predictor)(todo):
                journal.add(result)
                done += len(result.rows)
                on_progress(done, len(paths))
            write_results(out, journal.rows(), features=not predictor.classifies)
            bad = [f"{row.image}: {row.error}" for row in journal.rows() if row.error]
            journal.remove()
    return JobResult(len(paths), len(bad), resumed, tuple(bad[:5]))


def _engine(settings: JobSettings, predictor: Predictor) -> Callable[[Sequence[Chunk]], Iterator[ChunkResult]]:
    workers = settings.workers or core_count()
    if settings.engine == "ray":
        from vitexport.predict.ray_engine import predict_with_ray

        return lambda work: predict_with_ray(settings, work, workers)
    return lambda work: predict_chunks(ChunkPredictor(predictor, settings.top), work, workers)
