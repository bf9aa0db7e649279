"""Candidates that run a model, each in a process of its own, taking turns so that all see the same machine."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.install import peer_python, why_absent
from benchmarks.suites.processes import environment, last_error, module_command

__all__ = ["WORKER", "Candidate", "Worker", "WorkerError", "compare_logits", "start", "take_turns"]

WORKER = "peers.inference_worker"
"""Module that a candidate's process runs."""

PAUSE = 0.15
"""Seconds between turns: ONNX Runtime's and OpenMP's threads go on spinning for tens of milliseconds after a run."""


@dataclass(frozen=True)
class Candidate:
    """A way to run a model.

    Attributes:
        name: As in the table.
        kind: Of ``KINDS`` of :mod:`benchmarks.peers.inference_worker`.
        file: What it loads.
        peer: Environment it needs beside our own.
    """

    name: str
    kind: str
    file: str
    peer: str = ""


class Worker:
    """A candidate's process."""

    def __init__(self, candidate: Candidate, folder: Path, batch: int, inputs: str = "dev.npy") -> None:
        self.candidate = candidate
        python = peer_python(candidate.peer) if candidate.peer else Path(sys.executable)
        if python is None:
            raise WorkerError(f"{candidate.peer} is {why_absent(candidate.peer)}")
        job = (candidate.kind, folder / candidate.file, batch, folder / inputs)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            module_command(WORKER, *job, python=python),
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.version: dict[str, Any] = {}

    def wait(self) -> Worker:
        """Wait until it has loaded its model; a candidate that cannot is closed."""
        try:
            self.version = self._answer()
        except WorkerError:
            self.close()
            raise
        return self

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                return dict(json.loads(line[1:]))
        self._process.wait()
        self._errors.seek(0)
        raise WorkerError(" ".join(last_error(self._errors.read()).splitlines()))


class WorkerError(Exception):
    """A candidate cannot run; the message says why."""


def start(candidates: Sequence[Candidate], folder: Path, batch: int) -> tuple[dict[str, Worker], dict[str, str]]:
    """Start every candidate that can run; return them, and why the others cannot."""
    starting: dict[str, Worker] = {}
    workers: dict[str, Worker] = {}
    skipped: dict[str, str] = {}

    def skip(name: str, reason: WorkerError) -> None:
        skipped[name] = f"skipped: {reason}"
        print(f"{name}: {reason}", file=sys.stderr, flush=True)

    for candidate in candidates:
        if candidate.kind == "torch-compile" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            skipped[candidate.name] = "skipped: torch.compile needs a C++ compiler"
            continue
        try:
            starting[candidate.name] = Worker(candidate, folder, batch)
        except WorkerError as error:
            skip(candidate.name, error)
    for name, worker in starting.items():
        refused = _refusal(worker)
        if refused is None:
            workers[name] = worker
        else:
            skip(name, refused)
    return workers, skipped


def _refusal(worker: Worker) -> WorkerError | None:
    try:
        worker.wait()
    except WorkerError as error:
        return error
    return None


def take_turns(workers: Mapping[str, Worker], rounds: int, calls: int) -> dict[str, Any]:
    """Let the workers run one after the other; return the median seconds of each one's turns, in order."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    order = list(workers)
    shuffle = random.Random(0).shuffle  # nobody always runs after the same neighbour
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            time.sleep(PAUSE)
            seconds[name].append(float(np.median(workers[name].ask(f"time {calls}")["seconds"])))
    return {name: np.array(values) for name, values in seconds.items()}


def compare_logits(workers: Mapping[str, Worker], folder: Path, reference: str) -> dict[str, dict[str, float]]:
    """Return each candidate's SQNR and top-1 agreement with the candidate ``reference`` on the ``dev`` images."""
    logits = {}
    for name, worker in workers.items():
        if not worker.candidate.kind.startswith("gemm"):
            out = folder / "logits.npy"
            worker.ask(f"logits {out}")
            logits[name] = np.load(out).astype(np.float64)
    exact = logits[reference]
    found = {}
    for name, values in logits.items():
        noise = max(float(np.square(values - exact).sum()), 1e-300)
        found[name] = {
            "SQNR dB": min(10 * float(np.log10(np.square(exact).sum() / noise)), 200.0),
            "agreement %": 100 * float((values.argmax(axis=1) == exact.argmax(axis=1)).mean()),
        }
    return found
