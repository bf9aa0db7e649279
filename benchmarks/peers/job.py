"""What a quantizer's worker process is given and what it reports.

A worker runs in the environment of its tool as ``python -m benchmarks.peers.NAME_worker JOB.json``. The job names a
float ONNX file, the calibration images and the file to write; the report is one line of JSON on standard output. The
clock runs from image files to the written file, with the tool already imported: every tool decodes the same files with
the same code.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitexport.bundle.metadata import ModelMetadata
from vitexport.inputs.images import batches
from vitexport.tensors import Array

__all__ = ["Job", "feeds", "work"]


@dataclass(frozen=True)
class Job:
    """One quantization.

    Attributes:
        model: Float ONNX file that carries its preprocessing.
        images: Calibration images.
        out: Where the quantized file is written.
        options: What the worker of that tool understands.
    """

    model: str
    images: tuple[str, ...]
    out: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the job where a worker reads it."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what :meth:`write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "images": tuple(data["images"])})


def feeds(job: Job, metadata: Mapping[str, str]) -> Iterator[dict[str, Array]]:
    """Decode and preprocess one image after the other, as the model's metadata says.

    Yields:
        The model's input name and a float32 ``[1, 3, H, W]`` array.
    """
    described = ModelMetadata.from_metadata(metadata, where=job.model)
    tensor = described.model.inputs[0]
    for array in batches([Path(path) for path in job.images], described.preprocess, tensor, 1):
        yield {tensor.name: array}


def work(run: Callable[[Job], None], packages: Sequence[str]) -> None:
    """Do the job named on the command line and report seconds, peak memory in bytes and versions."""
    job = Job.read(Path(sys.argv[1]))
    started = time.perf_counter()
    run(job)
    seconds = time.perf_counter() - started
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps({"seconds": seconds, "peak_bytes": _peak_bytes(), "versions": versions}), flush=True)


def _peak_bytes() -> int:
    """Return the largest resident size of this process. ``ru_maxrss`` would start from the size of its parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
