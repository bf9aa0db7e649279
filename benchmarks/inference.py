"""Inference on the CPU, side by side: PyTorch, ONNX Runtime, OpenVINO, in float32 and int8.

    python benchmarks/inference.py                                every model, batch 1 and 8
    python benchmarks/inference.py --model vit-b16-timm --batch 1   one of them; the rest keeps what was measured before
    python benchmarks/inference.py --prepare                      only make the files, which need no quiet machine

Every candidate is a process of its own with its default number of threads. They run in turns, so that all see the same
machine; a turn is one untimed and a few timed runs. ``speed`` is the median over the rounds of our float32 graph's time
over the candidate's, and our float32 graph against a second process of itself gives the noise. The large float32
product that measures the machine's peak takes its turns among them. A model that is a row of
``benchmarks/model_rows.py`` has random weights, so only its speed is reported; for real weights the int8 files are also
compared with PyTorch's logits on the ``dev`` images.
"""

from __future__ import annotations

import argparse
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.inference_models import prepare  # noqa: E402
from benchmarks.peers.install import peer_python, why_absent  # noqa: E402
from benchmarks.tables import RESULTS, markdown_table, replace_table, save_results  # noqa: E402

SHARED = ROOT.parent / "shared"
WORKER = Path(__file__).with_name("inference_worker.py")
MODELS = (str(SHARED / "models" / "deit-tiny-hf"), "vit-b16-timm", "vit-b32-timm")
OURS = "vitexport float32"
AGAIN = "vitexport float32, again (noise)"


@dataclass(frozen=True)
class Candidate:
    """A way to run a model.

    Attributes:
        name: As in the table.
        kind: Of ``inference_worker.KINDS``.
        file: What it loads.
        peer: Environment it needs beside our own.
    """

    name: str
    kind: str
    file: str
    peer: str = ""


CANDIDATES = (
    Candidate(OURS, "vitexport", "ours.onnx"),
    Candidate(AGAIN, "vitexport", "ours.onnx"),
    Candidate("vitexport int8 (ort-x86)", "vitexport", "ours-int8.onnx"),
    Candidate("PyTorch eager", "torch", "source.txt"),
    Candidate("torch.compile", "torch-compile", "source.txt"),
    Candidate("ONNX Runtime float32, torch.onnx.export + onnxsim", "onnxruntime", "plain.onnx"),
    Candidate("ONNX Runtime int8, static s8s8", "onnxruntime", "onnxruntime-s8s8.onnx"),
    Candidate("ONNX Runtime int8, static u8s8", "onnxruntime", "onnxruntime-u8s8.onnx"),
    Candidate("ONNX Runtime int8, dynamic", "onnxruntime", "onnxruntime-dynamic.onnx"),
    Candidate("OpenVINO float32", "openvino", "plain.onnx", "openvino"),
    Candidate("OpenVINO int8 (NNCF)", "openvino", "plain-openvino.xml", "openvino"),
)
PEAK = (Candidate("NumPy", "gemm-numpy", "-"), Candidate("torch", "gemm-torch", "-"))
PAUSE = 0.15
"""Seconds between turns: ONNX Runtime's and OpenMP's threads go on spinning for tens of milliseconds after a run."""

PRODUCT_FLOPS = 2 * 2048**3


class Worker:
    """A candidate's process."""

    def __init__(self, candidate: Candidate, folder: Path, batch: int, inputs: str = "dev.npy") -> None:
        self.candidate = candidate
        python = peer_python(candidate.peer) if candidate.peer else Path(sys.executable)
        if python is None:
            raise WorkerError(f"{candidate.peer} is {why_absent(candidate.peer)}")
        command = [python, WORKER, candidate.kind, folder / candidate.file, batch, folder / inputs]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(part) for part in command],
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
        lines = self._errors.read().strip().splitlines() or ["it ended without a word"]
        raise WorkerError(lines[-1])


class WorkerError(Exception):
    """A candidate cannot run; the message says why."""


def main() -> int:
    """Print and keep the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="source or row name; repeatable")
    parser.add_argument("--batch", default="1,8", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=2, help="timed runs in a turn")
    parser.add_argument("--images", type=Path, default=SHARED / "data" / "imagenet-1k-sample", help="calib/ and dev/")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="leave a candidate out; repeatable")
    parser.add_argument("--work", type=Path, help="folder that keeps the files; a temporary one otherwise")
    parser.add_argument("--prepare", action="store_true", help="make the files and stop")
    parser.add_argument("--shallow", action="store_true", help="a quick check of this script; nothing is kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        for source in arguments.model or MODELS:
            folder = work / Path(source).name
            prepare(source, folder, arguments.images, shallow=arguments.shallow)
            openvino_int8(folder)
            if arguments.prepare:
                continue
            for batch in (int(size) for size in arguments.batch.split(",")):
                rows = measure(folder, batch, arguments.rounds, arguments.calls, arguments.skip)
                print(markdown_table(rows), flush=True)
                if not arguments.shallow:
                    keep(rows)
    return 0


def openvino_int8(folder: Path) -> None:
    """Quantize with NNCF in its environment, once."""
    python = peer_python("openvino")
    if python is not None and not (folder / "plain-openvino.xml").is_file():
        command = [python, WORKER, "openvino-int8", folder / "plain.onnx", 1, folder / "calib.npy"]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def measure(folder: Path, batch: int, rounds: int, calls: int, skip: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return one row per candidate; one that cannot run is a row that says why."""
    facts = json.loads((folder / "done.json").read_text())
    workers, skipped = start([c for c in (*CANDIDATES, *PEAK) if c.name not in skip], folder, batch)
    skipped |= dict.fromkeys(skip, "left out of this run")
    try:
        quality = {} if facts["random"] or batch > 1 else compare_logits(workers, folder)
        seconds = take_turns(workers, rounds, calls)
    finally:
        for worker in workers.values():
            worker.close()
    peak_name = min((c.name for c in PEAK), key=lambda name: float(np.median(seconds[name])))
    peak = PRODUCT_FLOPS / float(np.median(seconds[peak_name]))
    rows = []
    for candidate in CANDIDATES:
        row: dict[str, Any] = {"model": folder.name, "batch": batch, "candidate": candidate.name}
        if candidate.name in skipped:
            rows.append({**row, "note": skipped[candidate.name]})
            continue
        times = seconds[candidate.name]
        median = float(np.median(times))
        version = workers[candidate.name].version
        row |= {
            "ms": 1e3 * median,
            "images/s": batch / median,
            "speed": float(np.median(seconds[OURS] / times)),
            "of GEMM peak": facts["flops"] * batch / median / peak,
            **quality.get(candidate.name, {}),
            "version": f"{version['package']} {version['version']}",
        }
        rows.append(row)
    about = f"{peak / 1e9:.0f} GFLOP/s, {peak_name}, {calls * rounds} products of 2048 x 2048"
    rows.append({"model": folder.name, "batch": batch, "candidate": "float32 GEMM peak", "note": about})
    return rows


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


def compare_logits(workers: Mapping[str, Worker], folder: Path) -> dict[str, dict[str, float]]:
    """Return each candidate's SQNR and top-1 agreement with PyTorch on the ``dev`` images."""
    logits = {}
    for name, worker in workers.items():
        if not worker.candidate.kind.startswith("gemm"):
            out = folder / "logits.npy"
            worker.ask(f"logits {out}")
            logits[name] = np.load(out).astype(np.float64)
    reference = logits["PyTorch eager"]
    found = {}
    for name, values in logits.items():
        noise = max(float(np.square(values - reference).sum()), 1e-300)
        found[name] = {
            "SQNR dB": min(10 * float(np.log10(np.square(reference).sum() / noise)), 200.0),
            "agreement %": 100 * float((values.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        }
    return found


def keep(rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows in the place of those of the same model and batch, and write the document's table."""
    path = RESULTS / "inference.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    fresh = {(row["model"], row["batch"]) for row in rows}
    merged = [*(row for row in earlier if (row["model"], row["batch"]) not in fresh), *rows]
    merged.sort(key=lambda row: (str(row["model"]), int(row["batch"])))
    content = save_results("inference", merged, ("onnxruntime", "torch", "numpy"))
    replace_table(ROOT / "docs" / "benchmarks.md", "inference", content)


if __name__ == "__main__":
    sys.exit(main())
