"""Build full-size INT8 engines with TensorRT-RTX, without a GPU, and write the table of docs/tensorrt.md.

    python -m benchmarks.engines                     ViT-B/16, ViT-L/16 and BEiT-B
    python -m benchmarks.engines --row NAME ...      these rows; the table keeps the results of the others

Checkpoints are built from their configurations with every parameter perturbed, because no weights are downloaded. Every
step runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.suites.arguments import command_parser
from benchmarks.suites.model_rows import build, row_named, source_of
from benchmarks.suites.paths import RESULTS, ROOT, SAMPLE
from benchmarks.suites.processes import environment, last_error, module_command
from benchmarks.suites.tables import replace_section

TABLE = ROOT / "docs" / "tensorrt.md"
KEPT = RESULTS / "engines.json"
ROWS = ("google/vit-base-patch16-224", "vit-l16-hf", "beit_base_patch16_224.in22k_ft_in22k_in1k")
STEPS = ("checkpoint", "export", "simplify", "quantize", "engine")
BATCH = "1,8,32"


def main() -> int:
    """Run the sweep; returns 1 when a row fails."""
    parser = command_parser("engines", __doc__)
    parser.add_argument("--row", action="append", help="only this row (repeatable)")
    parser.add_argument("--images", type=Path, default=SAMPLE / "calib")
    parser.add_argument("--limit", type=int, default=64, help="calibration images")
    parser.add_argument("--shallow", action="store_true", help="two narrow blocks: a quick check of this script")
    parser.add_argument("--no-table", action="store_true", help="leave docs/tensorrt.md as it is")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="directory for models (deleted row by row)")
    arguments = parser.parse_args()
    if arguments.step:
        started = time.perf_counter()
        facts = _step(arguments.step, arguments)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**facts, "seconds": time.perf_counter() - started, "peak_bytes": peak}))
        return 0
    results: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    failed = []
    for name in arguments.row or ROWS:
        with tempfile.TemporaryDirectory(dir=arguments.work, prefix="engines-") as folder:
            measured = _measure(name, Path(folder), arguments)
        print(f"{name}: {json.dumps(measured)}", flush=True)
        if "failure" in measured:
            failed.append(name)
        elif not arguments.shallow:
            results[name] = measured
    if not arguments.shallow and not arguments.no_table:
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        _write_table(results)
    return 1 if failed else 0


def _measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    for step in STEPS:
        job = ("--step", step, "--row", name, "--work", folder)
        images = ("--images", arguments.images, "--limit", arguments.limit)
        command = module_command("engines", *job, *images)
        command += ["--shallow"] if arguments.shallow else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        if done.returncode != 0:
            return {**measured, "failure": f"{step}: {last_error(done.stderr)}"}
        measured[step] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _step(step: str, arguments: argparse.Namespace) -> dict[str, Any]:
    row = row_named(arguments.row[0])
    work: Path = arguments.work
    if step == "checkpoint":
        build(row, work / "checkpoint", shallow=arguments.shallow)
        return {}
    if step == "export":
        from vitexport.host.export import export_onnx
        from vitexport.host.sources import load_model
        from vitexport.recipe.settings import ExportSettings, ModelSettings

        loaded = load_model(ModelSettings(source=source_of(row, work / "checkpoint"), task=row.task))
        export_onnx(loaded, ExportSettings(), work / "exported.onnx")
        return {"bytes": (work / "exported.onnx").stat().st_size}
    if step == "simplify":
        from vitexport.host.simplify import simplify_onnx
        from vitexport.recipe.settings import SimplifySettings

        simplify_onnx(work / "exported.onnx", SimplifySettings(), work / "simplified.onnx")
        return {"bytes": (work / "simplified.onnx").stat().st_size}
    if step == "quantize":
        from vitexport.host.quantize import quantize_onnx
        from vitexport.inputs.images import list_images
        from vitexport.recipe.settings import QuantizeSettings

        settings = QuantizeSettings(precision="int8", target="tensorrt", preset="fast")
        images = list_images(arguments.images, limit=arguments.limit)
        quantize_onnx(work / "simplified.onnx", images, settings, work / "int8.onnx")
        return {"bytes": (work / "int8.onnx").stat().st_size}
    return _engine(work)


def _engine(work: Path) -> dict[str, Any]:
    from vitexport.engine.build import build_engine
    from vitexport.recipe.engine_settings import EngineSettings

    settings = EngineSettings.model_validate({"product": "tensorrt-rtx", "batch": BATCH})
    result = build_engine(work / "int8.onnx", settings, work / "model.engine")
    flops = result.details["requested_flops"]
    return {
        "bytes": result.details["bytes"],
        "version": result.details["version"],
        "precision": result.precision,
        "int8_share": flops.get("int8", 0) / sum(flops.values()),
        "gflops": sum(flops.values()) / 1e9,
        "profiles": result.details["profiles"],
    }


def _write_table(results: dict[str, Any]) -> None:
    lines = [
        "| model | GFLOP per image, fraction requested in int8 | ONNX fp32, int8 (MB) | engine (MB) | build (s) | peak "
        "memory of the build (GB) | from checkpoint to engine (s) | TensorRT-RTX |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ROWS:
        if name not in results:
            continue
        row = results[name]
        engine = row["engine"]
        total = sum(row[step]["seconds"] for step in STEPS)
        lines.append(
            f"| `{name}` | {engine['gflops']:.1f}, {engine['int8_share']:.1%} | {row['simplify']['bytes'] / 1e6:.0f}, "
            f"{row['quantize']['bytes'] / 1e6:.0f} | {engine['bytes'] / 1e6:.0f} | {engine['seconds']:.1f} | "
            f"{engine['peak_bytes'] / 1e9:.2f} | {total:.0f} | {engine['version']} |"
        )
    lines.append("")
    lines.append(
        f"Batches {BATCH} (one optimisation profile each), default targets, {platform.machine()}, no GPU present. "
        "Calibrated on 64 images on one core, which takes most of the time."
    )
    replace_section(TABLE, "engines", "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
