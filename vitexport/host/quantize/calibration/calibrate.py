"""Running a graph over calibration images with inner tensors exposed, an image per core in memory at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vitexport.errors import CalibrationError
from vitexport.host.graph.intermediate import open_exposed
from vitexport.host.quantize.calibration.statistics import StatisticsConfig, TensorStatistics
from vitexport.host.quantize.calibration.streaming import StreamingStatistics
from vitexport.host.quantize.parallel import map_parallel
from vitexport.inputs.images import content_hash, load_image
from vitexport.inputs.preprocess import PreprocessSpec, batch
from vitexport.machine import usable_cores
from vitexport.runtimes import Runtime
from vitexport.tensors import Array, TensorSpec, batch_limit

__all__ = [
    "IN_FLIGHT_BYTES",
    "ImageFeeds",
    "ImageSplit",
    "Progress",
    "collect_statistics",
    "evenly_spread",
    "run_images",
    "split_images",
]

_MOST_HELD_OUT = 64

IN_FLIGHT_BYTES = 1 << 28
"""What the outputs of images that run side by side may take together; two may always run."""

Progress = Callable[[str, float], None]


class ImageFeeds:
    """Preprocessed images: decoded once into a file of raw values, read back one at a time from any thread.

    No ``.npy`` files: their headers are Python literals, and CPython 3.11 may fail to parse two of them at once on two
    threads (``SystemError: AST constructor recursion depth mismatch``, python/cpython#106905).

    Args:
        paths: Image files.
        spec: Their preprocessing.
        tensor: The model input they feed.
        folder: Where the preprocessed images are written, created where there is none.
        batch_size: Images decoded at a time; changes memory, never a result.

    Attributes:
        hashes: :func:`~vitexport.inputs.images.content_hash` of each image.

    Raises:
        ImageError: An image cannot be used; the message names it.
    """

    def __init__(
        self, paths: Sequence[Path], spec: PreprocessSpec, tensor: TensorSpec, folder: Path, *, batch_size: int = 8
    ) -> None:
        self.tensor = tensor
        self.count = len(paths)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "images.bin"
        hashes: list[str] = []

        def read(path: Path) -> tuple[str, Array]:
            image = load_image(path)
            return content_hash(image), batch([image], spec, tensor)

        with self._file.open("wb") as stream:
            for start in range(0, len(paths), batch_size):
                for found, array in map_parallel(read, paths[start : start + batch_size]):
                    self._dtype, self._shape = array.dtype, array.shape[1:]
                    stream.write(array.tobytes())
                    hashes.append(found)
        self.hashes = tuple(hashes)

    def image(self, index: int) -> Array:
        """Return one image with a leading batch axis of 1."""
        size = math.prod(self._shape)
        array: Array = np.fromfile(self._file, self._dtype, size, offset=index * size * self._dtype.itemsize)
        return array.reshape(1, *self._shape)


@dataclass(frozen=True)
class ImageSplit:
    """Which calibration images are fitted to, and which judge.

    Attributes:
        calibrating: Ranges, transforms and rounding come from these.
        held_out: Results are measured on these.
    """

    calibrating: tuple[int, ...]
    held_out: tuple[int, ...]


def split_images(feeds: ImageFeeds) -> ImageSplit:
    """Hold out a quarter of the images, at most 64, evenly spread; an image whose copy calibrates is left out."""
    wanted = min(feeds.count // 4, _MOST_HELD_OUT)
    # From the middle of each stretch: the first and the last image calibrate.
    picked = {index + feeds.count // wanted // 2 for index in evenly_spread(feeds.count, wanted)}
    calibrating = tuple(index for index in range(feeds.count) if index not in picked)
    known = {feeds.hashes[index] for index in calibrating}
    return ImageSplit(calibrating, tuple(index for index in sorted(picked) if feeds.hashes[index] not in known))


def evenly_spread(count: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` of the indices below ``count``, evenly spread."""
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]


def run_images(runtime: Runtime, feeds: ImageFeeds, indices: Sequence[int]) -> Iterator[dict[str, Array]]:
    """Yield the outputs of one image after the other, in order, each with a leading batch axis of 1.

    The next images run on the other cores meanwhile, as many as :data:`IN_FLIGHT_BYTES` has room for. What is yielded
    belongs to the caller: an output taken out of the dictionary is freed as soon as the caller is done with it. A model
    of a fixed batch size runs on full batches, the last one filled up with its last image.
    """
    spec = runtime.inputs[0]
    size = batch_limit(spec) or 1

    def run(part: list[int]) -> Mapping[str, Array]:
        filled = part + [part[-1]] * (size - len(part))
        return runtime.run({spec.name: np.concatenate([feeds.image(index) for index in filled])})

    parts = [list(indices[start : start + size]) for start in range(0, len(indices), size)]
    cores = usable_cores()
    ahead = 2
    running: deque[tuple[int, Future[Mapping[str, Array]]]] = deque()
    with ThreadPoolExecutor(cores) as pool:

        def fill(most: int) -> None:
            while parts and len(running) < most:
                part = parts.pop(0)
                running.append((len(part), pool.submit(run, part)))

        try:
            while parts or running:
                fill(ahead)
                rows, future = running.popleft()
                outputs = future.result()
                taken = sum(array.nbytes for array in outputs.values())
                # The caller works on one while the cores have others.
                ahead = min(cores + 1, max(2, IN_FLIGHT_BYTES // max(taken, 1)))
                images = _split(outputs, rows)
                del future, outputs
                fill(ahead - 1)
                while images:
                    yield images.popleft()
        finally:
            for _, future in running:
                future.cancel()


def _split(outputs: Mapping[str, Array], rows: int) -> deque[dict[str, Array]]:
    return deque({name: value[row : row + 1] for name, value in outputs.items()} for row in range(rows))


def collect_statistics(
    model: ir.Model,
    wanted: Mapping[str, StatisticsConfig],
    feeds: ImageFeeds,
    *,
    images: Sequence[int] | None = None,
    class_token: bool = False,
    progress: Progress | None = None,
) -> dict[str, TensorStatistics]:
    """Run images once and return the statistics of the ``wanted`` tensors.

    Args:
        model: A model.
        wanted: What to keep of each tensor, by name; channels are its last axis.
        feeds: Calibration images.
        images: Which of them; None runs all.
        class_token: Row 0 of each image is what the head reads.
        progress: Called with a stage name and the fraction of it that is done.

    Raises:
        CalibrationError: There are no images, or a tensor holds NaN or infinity.
    """
    if not feeds.count:
        raise CalibrationError("Expected calibration images, found none.", "Give a folder of real images.")
    images = range(feeds.count) if images is None else images
    streams = {
        name: StreamingStatistics(name, images=len(images), config=config, class_token=class_token)
        for name, config in wanted.items()
    }
    with open_exposed(model, list(wanted)) as runtime:
        for index, outputs in enumerate(run_images(runtime, feeds, images)):
            for name, stream in streams.items():
                stream.update(outputs.pop(name))
            if progress is not None:
                progress("calibrating", (index + 1) / len(images))
    return {name: streams.pop(name).result() for name in list(streams)}
