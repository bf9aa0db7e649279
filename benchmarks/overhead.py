"""What the toolkit itself costs: runtime calls, the image pipeline, and start-up.

    python benchmarks/overhead.py [--model ONNX] [--images DIR]

Prints the ratio of ``Runtime.run`` to the raw ONNX Runtime call (interleaved), of ``predict`` to a plain
decode-preprocess-infer loop in images per second, and the seconds of ``import vitexport`` and ``vitexport --help``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.tables import markdown_table, replace_table, save_results  # noqa: E402
from vitexport.benchmark import interleave  # noqa: E402
from vitexport.images import list_images, load_image  # noqa: E402
from vitexport.model import ModelCard  # noqa: E402
from vitexport.preprocess import preprocess  # noqa: E402
from vitexport.runtimes import open_runtime  # noqa: E402

SHARED = ROOT.parent / "shared"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=str(SHARED / "models" / "deit-tiny-hf"), help="model to export and measure")
    parser.add_argument("--images", type=Path, default=SHARED / "data" / "imagenet-1k-sample" / "dev")
    parser.add_argument("--count", type=int, default=1000, help="JPEGs of the pipeline comparison (repeated if fewer)")
    parser.add_argument("--seconds", type=float, default=20, help="measured time per candidate")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = _export(arguments.source, Path(folder))
        rows = [_call_overhead(model, arguments.seconds)]
        rows.append(_pipeline(model, arguments.images, arguments.count, Path(folder)))
    rows += [
        _start_up("import vitexport", [sys.executable, "-c", "import vitexport"]),
        _start_up("vitexport --help", [sys.executable, "-m", "vitexport.cli", "--help"]),
    ]
    content = save_results("overhead", rows, ("onnxruntime", "numpy", "Pillow"))
    print(markdown_table(rows))
    replace_table(ROOT / "docs" / "benchmarks.md", "overhead", content)


def _export(source: str, folder: Path) -> Path:
    from vitexport.host.export import export_onnx
    from vitexport.host.simplify import simplify_onnx
    from vitexport.host.sources import load_model
    from vitexport.recipe import ExportSettings, ModelSettings, SimplifySettings

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


def _pipeline(model: Path, images: Path, count: int, folder: Path) -> dict[str, Any]:
    """Compare ``vitexport predict`` on a list of files with a plain loop over the same files."""
    paths = list_images(images)
    chosen = [paths[index % len(paths)] for index in range(count)]
    links = folder / "images"
    links.mkdir()
    for index, path in enumerate(chosen):
        (links / f"{index:05d}.jpg").symlink_to(path)
    command = [
        sys.executable,
        "-m",
        "vitexport.cli",
        "predict",
        str(model),
        str(links),
        "-o",
        str(folder / "out.jsonl"),
    ]
    start = time.perf_counter()
    subprocess.run([*command, "--overwrite"], check=True, capture_output=True, cwd=ROOT)
    ours = time.perf_counter() - start
    runtime = open_runtime(model)
    spec = ModelCard.from_metadata(runtime.metadata, where=str(model)).preprocess
    start = time.perf_counter()
    for path in chosen:
        runtime.run({runtime.inputs[0].name: preprocess(load_image(path), spec)[None]})
    plain = time.perf_counter() - start
    question = f"predict over {count} JPEGs against a plain loop, images/s (start-up included)"
    return {"question": question, "ours / peer": plain / ours}


def _start_up(name: str, command: list[str]) -> dict[str, Any]:
    """Return the median seconds of a command over the seconds of the bare interpreter, interleaved."""
    ours, bare = [], []
    for _ in range(11):
        for times, arguments in ((bare, [sys.executable, "-c", "pass"]), (ours, command)):
            start = time.perf_counter()
            subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT)
            times.append(time.perf_counter() - start)
    seconds = float(np.median(ours))
    return {
        "question": f"{name} against the bare interpreter",
        "ours / peer": seconds / float(np.median(bare)),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
