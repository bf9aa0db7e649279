"""Inference on a GPU, side by side: PyTorch, our engines, and engines of ONNX files that NVIDIA's own quantizer wrote.

    python -m benchmarks.engine_inference                      every model, batch 1, 8 and 32, with TensorRT
    python -m benchmarks.engine_inference --product tensorrt-rtx
    python -m benchmarks.engine_inference --prepare            only make ONNX files and engines

Every candidate is a process of its own; they run in turns, from an array in host memory to an array in host memory.
``speed`` is the median over the rounds of PyTorch's float16 time over the candidate's. Whatever cannot run here (no
GPU, no FP8, a tool that is not installed) is a row that says why.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.install import peer_python, why_absent
from benchmarks.peers.job import Job
from benchmarks.peers.launch import PeerError, run_worker
from benchmarks.suites.arguments import command_parser
from benchmarks.suites.inference_models import CALIBRATION, prepare_float
from benchmarks.suites.paths import SAMPLE, SHARED
from benchmarks.suites.tables import keep_rows, markdown_table
from benchmarks.suites.turns import Candidate, compare_logits, start, take_turns
from vitexport.errors import VitexportError
from vitexport.inputs.images import list_images

MODELS = (str(SHARED / "models" / "deit-tiny-hf"), "vit-b16-timm")
BATCH = "1,8,32"
BASELINE = "PyTorch eager float16"
EXACT = "PyTorch eager float32"

OURS = {"fp16": "vitexport float16", "int8": "vitexport int8", "fp8": "vitexport fp8"}
VENDORS = {"int8": "ModelOpt int8", "fp8": "ModelOpt fp8"}
CANDIDATES = (
    Candidate(EXACT, "torch-cuda", "source.txt"),
    Candidate(BASELINE, "torch-cuda-half", "source.txt"),
    Candidate("torch.compile float16", "torch-cuda-half-compile", "source.txt"),
    *(Candidate(f"{title} engine", "engine", f"ours-{mode}.engine") for mode, title in OURS.items()),
    *(Candidate(f"{title} engine", "engine", f"modelopt-{mode}.engine") for mode, title in VENDORS.items()),
)


def main() -> int:
    """Print and keep the measurements."""
    parser = command_parser("engine_inference", __doc__)
    parser.add_argument("--model", action="append", help="source or row name; repeatable")
    parser.add_argument("--product", choices=["tensorrt", "tensorrt-rtx"], default="tensorrt")
    parser.add_argument("--batch", default=BATCH, help="batch sizes, one optimisation profile each")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=10, help="timed runs in a turn")
    parser.add_argument("--images", type=Path, default=SAMPLE, help="calib/ and dev/")
    parser.add_argument("--work", type=Path, help="folder that keeps the files; a temporary one otherwise")
    parser.add_argument("--prepare", action="store_true", help="make the files and stop")
    parser.add_argument("--shallow", action="store_true", help="a quick check of this script; nothing is kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for source in arguments.model or MODELS:
            folder = (arguments.work or Path(temporary)) / Path(source).name
            prepare_float(source, folder, arguments.images, shallow=arguments.shallow)
            absent = write_quantized(folder, list_images(arguments.images / "calib", limit=CALIBRATION))
            absent |= build_engines(folder, arguments.product, arguments.batch)
            for name, reason in absent.items():
                print(f"{name}: {reason}", file=sys.stderr, flush=True)
            for batch in () if arguments.prepare else (int(size) for size in arguments.batch.split(",")):
                rows = measure(folder, batch, arguments.rounds, arguments.calls, absent)
                print(markdown_table(rows), flush=True)
                if not arguments.shallow and any("ms" in row for row in rows):
                    keep_rows("engine-inference", rows, ("torch", "tensorrt", "tensorrt-rtx-cu13"))
    return 0


def write_quantized(folder: Path, calibration: Sequence[Path]) -> dict[str, str]:
    """Write every ONNX file that an engine is built from; return which could not be made, and why."""
    from vitexport.host.quantize import quantize_onnx
    from vitexport.recipe.settings import QuantizeSettings

    for mode in OURS:
        out = folder / f"ours-{mode}.onnx"
        if not out.is_file():
            settings = QuantizeSettings.model_validate({"precision": mode, "target": "tensorrt"})
            quantize_onnx(folder / "ours.onnx", calibration, settings, out)
    absent = {}
    python = peer_python("modelopt")
    for mode, title in VENDORS.items():
        out = folder / f"modelopt-{mode}.onnx"
        if python is None:
            absent[f"{title} engine"] = f"modelopt is {why_absent('modelopt')}"
        elif not out.is_file():
            options = {"mode": mode, "method": "max", "body": "fp16"}
            try:
                run_worker(
                    python,
                    "modelopt",
                    Job(str(folder / "ours.onnx"), tuple(map(str, calibration)), str(out), options),
                )
            except PeerError as error:
                absent[f"{title} engine"] = str(error)
    return absent


def build_engines(folder: Path, product: str, batch: str) -> dict[str, str]:
    """Build the engine of every ONNX file with the same settings; return which could not be built, and why."""
    from vitexport.engine.build import build_engine
    from vitexport.recipe.engine_settings import EngineSettings

    settings = EngineSettings.model_validate({"product": product, "batch": batch})
    absent = {}
    for candidate in CANDIDATES:
        engine = folder / candidate.file
        model = engine.with_suffix(".onnx")
        if candidate.kind != "engine" or engine.is_file() or not model.is_file():
            continue
        try:
            build_engine(model, settings, engine)
        except VitexportError as error:
            absent[candidate.name] = " ".join(str(error).splitlines())
    return absent


def measure(folder: Path, batch: int, rounds: int, calls: int, absent: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one row per candidate; one that cannot run is a row that says why."""
    workers, skipped = start([one for one in CANDIDATES if one.name not in absent], folder, batch)
    skipped |= {name: f"skipped: {reason}" for name, reason in absent.items()}
    facts = json.loads((folder / "done.json").read_text())
    try:
        judged = not facts["random"] and batch == 1 and EXACT in workers
        quality = compare_logits(workers, folder, EXACT) if judged else {}
        seconds = take_turns(workers, rounds, calls)
    finally:
        for worker in workers.values():
            worker.close()
    rows = []
    for candidate in CANDIDATES:
        row: dict[str, Any] = {"model": folder.name, "batch": batch, "candidate": candidate.name}
        if candidate.name not in seconds:
            rows.append({**row, "note": skipped[candidate.name]})
            continue
        median = float(np.median(seconds[candidate.name]))
        row |= {"ms": 1e3 * median, "images/s": batch / median}
        if BASELINE in seconds:
            row["speed"] = float(np.median(seconds[BASELINE] / seconds[candidate.name]))
        rows.append({**row, "TFLOP/s": facts["flops"] * batch / median / 1e12, **quality.get(candidate.name, {})})
    return rows


if __name__ == "__main__":
    sys.exit(main())
