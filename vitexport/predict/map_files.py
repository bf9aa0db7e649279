"""Maps of many images as PNG files in a folder, with an index that says what their numbers mean."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from vitexport.errors import BundleError, ImageError, InferenceError, VitexportError
from vitexport.files import write_atomic
from vitexport.inputs.images import load_image
from vitexport.machine import usable_cores
from vitexport.predict.job import JobResult, OnOpen, OnProgress
from vitexport.predict.maps import class_map, depth_map
from vitexport.predict.predictor import Predictor
from vitexport.predict.settings import JobSettings
from vitexport.tensors import Array

__all__ = ["INDEX", "LEGEND", "predict_to_folder"]

INDEX = "maps.jsonl"
"""One line for each image: its file, its map, the scale or the share of each class, and the model."""

LEGEND = "classes.json"
"""Name and colour of each class index."""

_OUTPUT_BYTES = 256 << 20
_DEPTH_STEPS = 65535


@dataclass(frozen=True)
class _Job:
    """One image: its file and the name of its map."""

    path: Path
    name: str


def predict_to_folder(
    settings: JobSettings,
    paths: Sequence[Path],
    folder: Path,
    *,
    overwrite: bool = False,
    on_open: OnOpen = lambda predictor: None,
    on_progress: OnProgress = lambda done, total: None,
) -> JobResult:
    """Write a PNG map for each image, as large as the image, and an index.

    A segmentation map holds class indices, with a palette up to 256 classes; a depth map holds 0 for the smallest and
    65535 for the largest depth in that image, which the index names.

    Args:
        settings: Model, images per run, and how many runs at a time.
        paths: Images, in the order of the index.
        folder: Made if missing.
        overwrite: Write into a folder that holds files.
        on_open: Called with the opened model before the first image.
        on_progress: Called after each run.

    Raises:
        VitexportError: The folder holds files.
        BundleError: The model cannot be used, or gives no maps.
        InferenceError: The model failed, or a map holds NaN or infinity.
    """
    started = time.perf_counter()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        raise VitexportError(f"'{folder}' exists already.", "Use another -o folder, or write into it with --overwrite.")
    with settings.open() as predictor:
        _require_maps(predictor)
        on_open(predictor)
        folder.mkdir(parents=True, exist_ok=True)
        work = tuple(_batches(paths, _images_at_once(predictor, settings.batch)))
        write = _MapWriter(predictor, folder)
        rows: list[dict[str, Any]] = []
        on_progress(0, len(paths))
        with ThreadPoolExecutor(settings.workers or usable_cores(), thread_name_prefix="maps") as pool:
            for found in pool.map(write, work):
                rows += found
                on_progress(len(rows), len(paths))
        if predictor.metadata.model.task == "segment":
            write_atomic(folder / LEGEND, json.dumps(_legend(predictor), ensure_ascii=False, indent=1) + "\n")
    rows = [{**row, "variant": predictor.variant, "model_version": predictor.version} for row in rows]
    write_atomic(folder / INDEX, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    bad = tuple(f"{row['image']}: {row['error']}" for row in rows if row["error"])
    return JobResult(
        output=folder,
        images=len(rows),
        failed=len(bad),
        resumed=0,
        reasons=bad[:5],
        seconds=time.perf_counter() - started,
        model=predictor.name,
        variant=predictor.variant,
        sha256=predictor.sha256,
        notes=predictor.notes,
    )


def _require_maps(predictor: Predictor) -> None:
    if not predictor.gives_maps:
        raise BundleError(
            f"Expected a model that gives maps for an -o folder, but '{predictor.name}' does the task "
            f"{predictor.metadata.model.task}.",
            "Write its results to a file: -o FILE.jsonl, FILE.csv or FILE.parquet.",
        )


def _images_at_once(predictor: Predictor, asked: int) -> int:
    """Return how many images are run together: as asked, but no more than 256 MB of outputs."""
    sizes = (math.prod(axis for axis in spec.shape[1:] if isinstance(axis, int)) for spec in predictor.runtime.outputs)
    return max(1, min(asked, _OUTPUT_BYTES // (4 * sum(sizes))))


def _batches(paths: Sequence[Path], size: int) -> Iterator[tuple[_Job, ...]]:
    """Yield runs of images, each with a name of its own for its map."""
    seen: Counter[str] = Counter()
    jobs = []
    for path in paths:
        count = seen[path.stem]
        seen[path.stem] += 1
        jobs.append(_Job(path, f"{path.stem}-{count}.png" if count else f"{path.stem}.png"))
    for start in range(0, len(jobs), size):
        yield tuple(jobs[start : start + size])


class _MapWriter:
    """Predicts a run of images and writes their maps; safe to call from several threads."""

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self._predictor = predictor
        self._folder = folder
        self._turn: AbstractContextManager[object] = nullcontext() if predictor.concurrent else Lock()

    def __call__(self, jobs: Sequence[_Job]) -> list[dict[str, Any]]:
        images = [_opened(job.path) for job in jobs]
        feeds = [self._predictor.prepare(image) for image in images if not isinstance(image, str)]
        outputs: dict[str, Array] = {}
        if feeds:
            with self._turn:
                outputs = self._predictor.run(np.stack(feeds))
        place = 0
        rows = []
        for job, image in zip(jobs, images, strict=True):
            if isinstance(image, str):
                rows.append({"image": str(job.path), "map": None, "error": image})
                continue
            one = {name: array[place] for name, array in outputs.items()}
            rows.append(self._write(job, one, (image.height, image.width)))
            place += 1
        return rows

    def _write(self, job: _Job, outputs: dict[str, Array], size: tuple[int, int]) -> dict[str, Any]:
        model = self._predictor.metadata.model
        if not all(np.isfinite(array).all() for array in outputs.values()):
            raise InferenceError(
                f"Expected finite numbers from '{self._predictor.name}', found NaN or infinity.",
                "Check the bundle with `vitexport verify`.",
            )
        path = self._folder / job.name
        if model.task == "segment":
            facts = _write_classes(path, class_map(model, outputs, size), self._predictor)
        else:
            facts = _write_depth(path, depth_map(model, outputs, size))
        return {"image": str(job.path), "map": job.name, **facts, "error": None}


def _opened(path: Path) -> Image.Image | str:
    try:
        return load_image(path)
    except ImageError as error:
        return error.message


def _write_classes(path: Path, classes: NDArray[np.uint16], predictor: Predictor) -> dict[str, Any]:
    """Write class indices: with a palette where they fit 8 bits, else as 16-bit grey."""
    indices, counts = np.unique(classes, return_counts=True)
    if classes.max(initial=0) < 256:
        image = Image.fromarray(classes.astype(np.uint8), mode="P")
        image.putpalette([channel for index in range(256) for channel in _colour(index)])
    else:
        image = Image.fromarray(classes)
    image.save(path)
    shares = {predictor.label(int(i)): round(int(n) / classes.size, 6) for i, n in zip(indices, counts, strict=True)}
    return {"classes": shares}


def _write_depth(path: Path, depth: NDArray[np.float32]) -> dict[str, Any]:
    """Write 16-bit grey: ``minimum + value / 65535 * (maximum - minimum)`` gives the depth again."""
    low, high = float(depth.min()), float(depth.max())
    steps = (depth.astype(np.float64) - low) / (high - low or 1.0) * _DEPTH_STEPS
    scale = {"minimum": low, "maximum": high}
    text = PngImagePlugin.PngInfo()
    for name, value in scale.items():
        text.add_text(name, repr(value))
    Image.fromarray(np.round(steps).astype(np.uint16)).save(path, pnginfo=text)
    return scale


def _legend(predictor: Predictor) -> dict[str, Any]:
    names = predictor.metadata.class_names
    return {str(index): {"name": name, "colour": list(_colour(index % 256))} for index, name in enumerate(names)}


def _colour(index: int) -> tuple[int, int, int]:
    """Return the colour of a class in the PASCAL VOC colour map: the index's bits, spread over the channels."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]
