"""A batch job: sources to a results file, with a journal so that it can be killed and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from vitexport.errors import VitexportError
from vitexport.machine import usable_cores
from vitexport.predict.batch import Chunk, ChunkPredictor, ChunkResult, chunks, predict_chunks
from vitexport.predict.journal import Journal, job_identity, journal_path
from vitexport.predict.predictor import Predictor
from vitexport.predict.results import check_format, write_results
from vitexport.predict.settings import JobSettings
from vitexport.tables import Table, Tabular

__all__ = ["JobResult", "OnOpen", "OnProgress", "predict_to_file", "what_is_done"]

OnOpen: TypeAlias = Callable[[Predictor], None]


@dataclass(frozen=True, repr=False)
class JobResult(Tabular):
    """What a job did.

    Attributes:
        output: The results file.
        images: Images in the results.
        failed: Of these, images that could not be used.
        resumed: Images taken over from a killed run.
        reasons: The first few reasons of failures, as ``path: reason``.
        seconds: Wall time of this run.
        model: Name of the model.
        variant: Which model of the bundle, or the file's name.
        sha256: Of that model.
        notes: What a person should know of the choice, e.g. why a later variant was passed over.
    """

    output: Path
    images: int
    failed: int
    resumed: int
    reasons: tuple[str, ...]
    seconds: float
    model: str
    variant: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def images_per_second(self) -> float:
        """Images that this run predicted, by the second."""
        return (self.images - self.resumed) / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "output": str(self.output),
            "model": self.model,
            "variant": self.variant,
            "sha256": self.sha256,
            "notes": list(self.notes),
            "images": self.images,
            "failed": self.failed,
            "resumed": self.resumed,
            "reasons": list(self.reasons),
            "seconds": round(self.seconds, 3),
        }

    def tables(self) -> tuple[Table, ...]:
        """Return the counts, and the first reasons of failures."""
        facts = {"results": str(self.output), "model": f"{self.model}, {self.variant} ({self.sha256[:12]})"}
        facts |= {"images": str(self.images), "unusable": str(self.failed)}
        facts |= {"from the run before": str(self.resumed), "images/s": f"{self.images_per_second:.1f}"}
        counts = Table("", ("fact", "value"), tuple(facts.items()), text=("value",))
        reasons = Table("", ("the first unusable images",), tuple((reason,) for reason in self.reasons))
        return (counts, reasons) if self.reasons else (counts,)


class OnProgress(Protocol):
    """Called with how many images are done, failed ones included, and how many there are."""

    def __call__(self, done: int, total: int) -> None: ...


def predict_to_file(
    settings: JobSettings,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    on_open: OnOpen = lambda predictor: None,
    on_progress: OnProgress = lambda done, total: None,
) -> JobResult:
    """Predict files and write the results; a job killed earlier goes on where it stopped.

    Args:
        settings: Model and engine.
        paths: Images, in the order of the results.
        out: Results file, ``.jsonl``, ``.csv`` or ``.parquet``.
        overwrite: Replace existing results, and drop another job's journal.
        on_open: Called with the opened model before the first image.
        on_progress: Called after each chunk.

    Raises:
        VitexportError: The results file exists, its ending is unknown, or the journal is another job's.
        BundleError: The model cannot be used.
        InferenceError: The model failed; what is done stays in the journal.
        MissingDependencyError: pyarrow or ray is missing.
    """
    start = time.perf_counter()
    out = Path(out)
    check_format(out)
    if out.exists() and not overwrite:
        raise VitexportError(f"'{out}' exists already.", "Use another -o file, or replace it with --overwrite.")
    work = chunks(paths, settings.batch)
    with settings.open() as predictor:
        assert predictor.output  # raises for a model without vectors, before there is a journal
        on_open(predictor)
        identity = job_identity(work, what_is_done(settings, predictor))
        with Journal(journal_path(out), identity, overwrite=overwrite) as journal:
            todo = tuple(chunk for chunk in work if chunk.index not in journal.done)
            resumed = len(paths) - sum(len(chunk.paths) for chunk in todo)
            done = resumed
            on_progress(done, len(paths))
            for result in _engine(settings, predictor)(todo):
                journal.add(result)
                done += len(result.rows)
                on_progress(done, len(paths))
            write_results(
                out,
                journal.rows(),
                features=not predictor.classifies,
                variant=predictor.variant,
                model_version=predictor.version,
            )
            bad = [f"{row.image}: {row.error}" for row in journal.rows() if row.error]
            journal.remove()
    return JobResult(
        output=out,
        images=len(paths),
        failed=len(bad),
        resumed=resumed,
        reasons=tuple(bad[:5]),
        seconds=time.perf_counter() - start,
        model=predictor.name,
        variant=predictor.variant,
        sha256=predictor.sha256,
        notes=predictor.notes,
    )


def what_is_done(settings: JobSettings, predictor: Predictor) -> dict[str, object]:
    """Return everything that rows depend on beside the images: one journal holds rows of one of these."""
    metadata = predictor.metadata
    return {
        "model": predictor.version,
        "variant": predictor.variant,
        "top": settings.top,
        "batch": settings.batch,
        "preprocess": metadata.preprocess.model_dump(mode="json"),
        "class_names": list(metadata.class_names),
        "scoring": metadata.scoring,
    }


def _engine(settings: JobSettings, predictor: Predictor) -> Callable[[Sequence[Chunk]], Iterator[ChunkResult]]:
    workers = settings.workers or usable_cores()
    if settings.engine == "ray":
        from vitexport.predict.ray_engine import predict_with_ray

        return lambda work: predict_with_ray(settings, work, workers)
    return lambda work: predict_chunks(ChunkPredictor(predictor, settings.top), work, workers)
