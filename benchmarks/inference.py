"""Inference on the CPU, side by side: PyTorch, ONNX Runtime, OpenVINO, in float32 and int8.

    python -m benchmarks.inference                                every model, batch 1 and 8
    python -m benchmarks.inference --model vit-b16-timm --batch 1   one of them; the rest keeps what was measured before
    python -m benchmarks.inference --prepare                      only make the files, which need no quiet machine

Every candidate is a process of its own with its default number of threads. They run in turns, so that all see the same
machine; a turn is one untimed and a few timed runs. ``speed`` is the median over the rounds of our float32 graph's time
over the candidate's, and our float32 graph against a second process of itself gives the noise. The large float32
product that measures the machine's peak takes its turns among them. A model that is a row of
``benchmarks/suites/model_rows.py`` has random weights, so only its speed is reported; for real weights the int8 files
are also compared with PyTorch's logits on the ``dev`` images.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.install import peer_python
from benchmarks.suites.arguments import command_parser
from benchmarks.suites.inference_models import prepare
from benchmarks.suites.paths import SAMPLE, SHARED
from benchmarks.suites.processes import environment, module_command
from benchmarks.suites.tables import keep_rows, markdown_table
from benchmarks.suites.turns import WORKER, Candidate, compare_logits, start, take_turns

MODELS = (str(SHARED / "models" / "deit-tiny-hf"), "vit-b16-timm", "vit-b32-timm")
OURS = "vitexport float32"
AGAIN = "vitexport float32, again (noise)"


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
PRODUCT_FLOPS = 2 * 2048**3


def main() -> int:
    """Print and keep the measurements."""
    parser = command_parser("inference", __doc__)
    parser.add_argument("--model", action="append", help="source or row name; repeatable")
    parser.add_argument("--batch", default="1,8", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=2, help="timed runs in a turn")
    parser.add_argument("--images", type=Path, default=SAMPLE, help="calib/ and dev/")
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
                    keep_rows("inference", rows, ("onnxruntime", "torch", "numpy"))
    return 0


def openvino_int8(folder: Path) -> None:
    """Quantize with NNCF in its environment, once."""
    python = peer_python("openvino")
    if python is not None and not (folder / "plain-openvino.xml").is_file():
        job = ("openvino-int8", folder / "plain.onnx", 1, folder / "calib.npy")
        command = module_command(WORKER, *job, python=python)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())


def measure(folder: Path, batch: int, rounds: int, calls: int, skip: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return one row per candidate; one that cannot run is a row that says why."""
    facts = json.loads((folder / "done.json").read_text())
    workers, skipped = start([c for c in (*CANDIDATES, *PEAK) if c.name not in skip], folder, batch)
    skipped |= dict.fromkeys(skip, "left out of this run")
    try:
        quality = {} if facts["random"] or batch > 1 else compare_logits(workers, folder, "PyTorch eager")
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


if __name__ == "__main__":
    sys.exit(main())
