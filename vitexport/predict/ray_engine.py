"""The batch job on a Ray cluster: Ray Data hands chunks to actors that each hold one runtime.

Results come back as they are ready; the journal puts them in order. Files are read by the workers, so on more than one
machine images and model must lie on storage that all of them mount at the same path.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vitexport.errors import InferenceError, MissingDependencyError
from vitexport.predict.batch import Chunk, ChunkPredictor, ChunkResult
from vitexport.predict.results import row_from_json, row_to_json
from vitexport.predict.settings import JobSettings

__all__ = ["predict_with_ray"]


class _Actor:
    """Predicts chunks inside a Ray worker; Ray Data calls it with one row of the dataset at a time."""

    def __init__(self, settings: JobSettings, folder: str) -> None:
        # Relative paths mean what they mean where the job was started.
        os.chdir(folder)
        self._predict = ChunkPredictor(settings.open(), settings.top)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        paths = tuple(Path(path) for path in json.loads(row["paths"]))
        result = self._predict(Chunk(int(row["index"]), paths))
        # As text: Ray infers a schema per block, and a block of bad images would have another than its neighbour.
        return {"index": result.index, "rows": json.dumps([row_to_json(row) for row in result.rows])}


def predict_with_ray(settings: JobSettings, work: Sequence[Chunk], workers: int) -> Iterator[ChunkResult]:
    """Predict chunks on Ray, in any order.

    Args:
        settings: Model, runtime options and the cluster's address; without one, Ray is started here and stopped after.
        work: The chunks.
        workers: Actors, each with one CPU.

    Raises:
        MissingDependencyError: Ray is not installed.
        InferenceError: A worker failed.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise MissingDependencyError("ray", "ray", "The Ray engine") from error
    if not work:
        return
    started_here = not ray.is_initialized()
    if started_here:
        # "local" never joins a cluster that happens to run on this machine.
        ray.init(address=settings.address or "local", log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    items = [{"index": chunk.index, "paths": json.dumps([str(path) for path in chunk.paths])} for chunk in work]
    actors = min(workers, len(work))
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        # A class is what an actor pool takes; the annotation of map() knows only functions.
        cast("Callable[[dict[str, Any]], dict[str, Any]]", _Actor),
        fn_constructor_args=(replace(settings, model=Path(settings.model).resolve()), str(Path.cwd())),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    try:
        for row in dataset.iter_rows():
            yield ChunkResult(int(row["index"]), tuple(row_from_json(entry) for entry in json.loads(row["rows"])))
    except ray.exceptions.RayError as error:
        raise InferenceError(
            f"A Ray worker failed: {error}", "Check that every node has vitexport, the model and the images."
        ) from error
    finally:
        if started_here:
            ray.shutdown()
