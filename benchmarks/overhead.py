"""What the toolkit itself costs: runtime calls, the image pipeline, and start-up.

    python -m benchmarks.overhead [--source MODEL] [--images DIR]

Prints the ratio of ``Runtime.run`` to the raw ONNX Runtime call (interleaved), of ``predict`` to loops that decode,
preprocess and infer one image after the other (in turns, images per second), and the seconds of ``import vitexport``
and ``vitexport --help``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.suites.arguments import command_parser
from benchmarks.suites.paths import BENCHMARKS_PAGE, SAMPLE, SHARED
from benchmarks.suites.processes import environment
from benchmarks.suites.tables import markdown_table, replace_table, save_results
from vitexport.benchmark.latency import interleave
from vitexport.bundle.metadata import ModelMetadata
from vitexport.inputs.images import list_images, load_image
from vitexport.inputs.preprocess import preprocess
from vitexport.runtimes import open_runtime

PIPELINE_ROUNDS = 3


def main() -> None:
    """Measure and print."""
    parser = command_parser("overhead", __doc__)
    parser.add_argument("--source", default=str(SHARED / "models" / "deit-tiny-hf"), help="model to export and measure")
    parser.add_argument("--images", type=Path, default=SAMPLE / "dev")
    parser.add_argument("--count", type=int, default=1000, help="JPEGs of the pipeline comparison (repeated if fewer)")
    parser.add_argument("--seconds", type=float, default=20, help="measured time per candidate")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = _export(arguments.source, Path(folder))
        rows = [_call_overhead(model, arguments.seconds)]
        rows += _pipeline(arguments.source, model, arguments.images, arguments.count, Path(folder))
    rows += [
        _start_up("import vitexport", [sys.executable, "-c", "import vitexport"]),
        _start_up("vitexport --help", [sys.executable, "-m", "vitexport.cli", "--help"]),
    ]
    content = save_results("overhead", rows, ("onnxruntime", "numpy", "Pillow", "transformers"))
    print(markdown_table(rows))
    replace_table(BENCHMARKS_PAGE, "overhead", content)


def _export(source: str, folder: Path) -> Path:
    from vitexport.host.export import export_onnx
    from vitexport.host.simplify import simplify_onnx
    from vitexport.host.sources import load_model
    from vitexport.recipe.settings import ExportSettings, ModelSettings, SimplifySettings

    exported = export_onnx(load_model(ModelSettings(source=source)), ExportSettings(), folder / "exported.onnx")
    return simplify_onnx(exported.path, SimplifySettings(), folder / "model.onnx").path


def _call_overhead(model: Path, seconds: float) -> dict[str, Any]:
    """Time ``Runtime.run`` and the session underneath it, in turn, on the same feed."""
    runtime = open_runtime(model)
    session: Any = vars(runtime)["_session"]
    tensor = runtime.inputs[0]
    shape = tuple(1 if isinstance(axis, str) else axis for axis in tensor.shape)
    feeds = {tensor.name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    names = [spec.name for spec in runtime.outputs]
    calls = {"raw": lambda: session.run(names, feeds), "ours": lambda: runtime.run(feeds)}
    times = interleave(calls, seconds=seconds, warmup=10)
    ratio = float(np.median(times["ours"] / times["raw"]))
    return {"question": "Runtime.run against the raw session call, batch 1", "ours / peer": ratio}


def _pipeline(source: str, model: Path, images: Path, count: int, folder: Path) -> list[dict[str, Any]]:
    """Compare ``vitexport predict`` on a list of files, in turn, with loops written by hand over the same files."""
    paths = list_images(images)
    chosen = [paths[index % len(paths)] for index in range(count)]
    links = folder / "images"
    links.mkdir()
    for index, path in enumerate(chosen):
        (links / f"{index:05d}.jpg").symlink_to(path)
    out = str(folder / "out.jsonl")
    command = [sys.executable, "-m", "vitexport.cli", "predict", str(model), str(links), "-o", out, "--overwrite"]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    loops = _loops(source, model)
    ratios: dict[str, list[float]] = {loop: [] for loop in loops}
    for _ in range(PIPELINE_ROUNDS):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment())
        ours = time.perf_counter() - start
        for loop, prepare in loops.items():
            start = time.perf_counter()
            for path in chosen:
                session.run(None, {name: prepare(path)})
            ratios[loop].append((time.perf_counter() - start) / ours)
    return [
        {
            "question": f"predict over {count} JPEGs, start-up included, against {loop}, images/s",
            "ours / peer": float(np.median(found)),
        }
        for loop, found in ratios.items()
    ]


def _loops(source: str, model: Path) -> dict[str, Callable[[Path], Any]]:
    """Return ways to turn a file into an input by hand: the library's own, and with no more work than ours."""
    from transformers import AutoImageProcessor

    runtime = open_runtime(model)
    spec = ModelMetadata.from_metadata(runtime.metadata, where=str(model)).preprocess
    loops: dict[str, Callable[[Path], Any]] = {
        "a loop of our preprocessing and session.run": lambda path: preprocess(load_image(path), spec)[None]
    }
    if (Path(source) / "preprocessor_config.json").is_file():
        processor = AutoImageProcessor.from_pretrained(source)

        def processed(path: Path) -> Any:
            return processor(images=Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"]

        loops["a loop of AutoImageProcessor and session.run"] = processed
    return loops


def _start_up(name: str, command: list[str]) -> dict[str, Any]:
    """Return a command's seconds over those of the bare interpreter run right before it: the median of the pairs."""
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(41):
        for times, arguments in ((bare, [sys.executable, "-c", "pass"]), (ours, command)):
            start = time.perf_counter()
            subprocess.run(arguments, check=True, capture_output=True, env=environment())
            times.append(time.perf_counter() - start)
    return {
        "question": f"{name} against the bare interpreter",
        "ours / peer": float(np.median(np.divide(ours, bare))),
        "seconds": float(np.median(ours)),
    }


if __name__ == "__main__":
    main()
