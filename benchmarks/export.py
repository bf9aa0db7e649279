"""Export against ``torch.onnx.export`` followed by onnxsim: seconds, peak memory, nodes, and speed in ONNX Runtime.

    python benchmarks/export.py [--row vit-b16-timm] [--rounds 60] [--batch 1]

The checkpoint is built from its configuration with every parameter perturbed. Each export runs in a process of its
own; the two graphs (and the one that takes uint8 pixels) are timed by turns in one process, so that both see the same
machine, and the ratio is the median over the rounds. The plain graph measured against a second session of itself gives
the noise.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.model_rows import build, row_named, source_of  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "export.json"


def main() -> int:
    """Print and keep the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", default="vit-b16-timm")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--shallow", action="store_true", help="a quick check of this script")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments)))
        return 0
    measured: dict[str, Any] = {"row": arguments.row, "batch": arguments.batch}
    with tempfile.TemporaryDirectory() as folder:
        arguments.work = Path(folder)
        build(row_named(arguments.row), arguments.work / "checkpoint", shallow=arguments.shallow)
        for step in STEPS:
            options = ["--step", step, "--row", arguments.row, "--work", folder]
            options += ["--rounds", str(arguments.rounds), "--batch", str(arguments.batch)]
            done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
            measured[step] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(measured, indent=1))
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(measured, indent=1) + "\n")
    return 0


def _peak_gb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def _load(arguments: argparse.Namespace) -> Any:
    from vitexport.host.sources import load_model
    from vitexport.recipe import ModelSettings

    row = row_named(arguments.row)
    source = source_of(row, arguments.work / "checkpoint")
    return load_model(ModelSettings(source=source, task=row.task), image_size=row.image_size)


def _step_plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a user writes without this package: torch.onnx.export with a dynamic batch, then onnxsim."""
    import onnx
    import onnxsim
    import torch

    loaded = _load(arguments)
    size = [int(axis) for axis in loaded.spec.inputs[0].shape[1:]]
    exported, simplified = arguments.work / "plain.onnx", arguments.work / "plain-sim.onnx"
    started = time.perf_counter()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        loaded.module, (torch.zeros(2, *size),), dynamo=True, opset_version=20, dynamic_shapes=shapes, verbose=False
    )
    program.save(exported)
    middle = time.perf_counter()
    model, _ = onnxsim.simplify(str(exported))
    onnx.save(model, simplified)
    ended = time.perf_counter()
    return {
        "export_seconds": round(middle - started, 1),
        "simplify_seconds": round(ended - middle, 1),
        "peak_gb": _peak_gb(),
        "nodes": len(model.graph.node),
    }


def _step_ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same through export_onnx and simplify_onnx, which also check what they wrote."""
    from vitexport.host.export import export_onnx
    from vitexport.host.simplify import simplify_onnx
    from vitexport.recipe import ExportSettings, SimplifySettings

    loaded = _load(arguments)
    started = time.perf_counter()
    export_onnx(loaded, ExportSettings(), arguments.work / "ours.onnx")
    middle = time.perf_counter()
    result = simplify_onnx(arguments.work / "ours.onnx", SimplifySettings(), arguments.work / "ours-sim.onnx")
    ended = time.perf_counter()
    peak = _peak_gb()
    export_onnx(loaded, ExportSettings(input="uint8"), arguments.work / "pixels.onnx")
    simplify_onnx(arguments.work / "pixels.onnx", SimplifySettings(), arguments.work / "pixels-sim.onnx")
    return {
        "export_seconds": round(middle - started, 1),
        "simplify_seconds": round(ended - middle, 1),
        "peak_gb": peak,
        "nodes": result.details["nodes"],
    }


def _step_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the graphs by turns; ratios are plain over ours, so above 1 ours is faster."""
    import numpy as np
    import onnxruntime as ort

    files = {"plain": "plain-sim", "again": "plain-sim", "ours": "ours-sim", "pixels": "pixels-sim"}
    sessions = {
        name: ort.InferenceSession(str(arguments.work / f"{file}.onnx"), providers=["CPUExecutionProvider"])
        for name, file in files.items()
    }
    generator = np.random.default_rng(0)
    feeds = {}
    for name, session in sessions.items():
        given = session.get_inputs()[0]
        shape = [arguments.batch, *given.shape[1:]]
        pixels = generator.integers(0, 256, size=shape, dtype=np.uint8)
        feeds[name] = {given.name: pixels if given.type == "tensor(uint8)" else pixels.astype(np.float32) / 128 - 1}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    names = list(sessions)
    for turn in range(arguments.rounds + 5):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            sessions[name].run(None, feeds[name])
            if turn >= 5:
                seconds[name].append(time.perf_counter() - started)
    ratio = {
        name: round(statistics.median(a / b for a, b in zip(seconds["plain"], values, strict=True)), 3)
        for name, values in seconds.items()
        if name != "plain"
    }
    return {
        "milliseconds": {name: round(1000 * statistics.median(values), 2) for name, values in seconds.items()},
        "plain_over": ratio,
    }


STEPS = {"plain": _step_plain, "ours": _step_ours, "speed": _step_speed}

if __name__ == "__main__":
    sys.exit(main())
