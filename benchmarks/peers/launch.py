"""Run a quantizer in a process of its own and measure what it takes."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers.job import Job
from benchmarks.suites.processes import environment, last_error, module_command

__all__ = ["Outcome", "PeerError", "run_worker"]

_INTERVAL = 0.02


class PeerError(Exception):
    """A worker failed; the message is that of its exception, in one line."""


@dataclass(frozen=True)
class Outcome:
    """What one quantization took.

    Attributes:
        seconds: From image files to the quantized file, imports excluded.
        peak_bytes: Largest resident size of the process, its children included.
        versions: Package versions in the worker's environment.
    """

    seconds: float
    peak_bytes: int
    versions: Mapping[str, str]


def run_worker(python: Path, worker: str, job: Job) -> Outcome:
    """Run ``benchmarks.peers.WORKER_worker`` under an interpreter.

    Args:
        python: Interpreter of the tool's environment.
        worker: Which worker.
        job: What to do.

    Raises:
        PeerError: The worker failed or wrote no file.
    """
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        path = Path(folder) / "job.json"
        job.write(path)
        command = module_command(f"peers.{worker}_worker", path, python=python)
        with (Path(folder) / "out").open("w+") as out, (Path(folder) / "err").open("w+") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, env=environment())
            peak = _watch(process)
            out.seek(0)
            err.seek(0)
            printed, complaints = out.read().splitlines(), err.read()
    if process.returncode:
        reason = last_error(complaints) if complaints.strip() else f"exit code {process.returncode}"
        raise PeerError(" ".join(reason.split()))
    if not Path(job.out).is_file():
        raise PeerError(f"wrote no '{Path(job.out).name}'")
    report = json.loads(printed[-1])
    return Outcome(report["seconds"], max(peak, report["peak_bytes"]), report["versions"])


def _watch(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process and return the largest resident size seen of it and its children together, in bytes."""
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        total = 0
        try:
            for member in (watched, *watched.children(recursive=True)):
                total += member.memory_info().rss
        except psutil.NoSuchProcess:
            total = 0  # one ended between listing and reading; the next look counts the others
        peak = max(peak, total)
        time.sleep(_INTERVAL)
    return peak
