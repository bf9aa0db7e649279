"""Export every model row at its full size, compare ONNX Runtime with PyTorch on photographs, and write the table of
docs/models.md.

    python -m benchmarks.models --images DIR                 all rows, then the table
    python -m benchmarks.models --images DIR --row NAME ...  these rows; the table keeps the results of the others

Checkpoints are built from their configurations with every parameter perturbed, because no weights are downloaded.
Every step of a row runs in a process of its own, so that its peak memory is its own and is given back.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.suites.arguments import command_parser
from benchmarks.suites.head_rows import ALL_ROWS, any_row
from benchmarks.suites.model_rows import Row, build, settings_of
from benchmarks.suites.paths import RESULTS, ROOT, SAMPLE
from benchmarks.suites.processes import environment, module_command
from benchmarks.suites.tables import replace_section

TABLE = ROOT / "docs" / "models.md"
KEPT = RESULTS / "models.json"
TOLERANCE = 1e-4
BATCHES = (1, 5)


def main() -> int:
    """Run the sweep; returns 1 when a row fails or exceeds the tolerance."""
    parser = command_parser("models", __doc__)
    parser.add_argument("--images", type=Path, default=SAMPLE / "dev")
    parser.add_argument("--row", action="append", help="only this row (repeatable)")
    parser.add_argument("--results", type=Path, default=KEPT, help="where measurements are kept as JSON")
    parser.add_argument(
        "--shallow", action="store_true", help="two narrow blocks per model: a quick check of this script"
    )
    parser.add_argument("--no-table", action="store_true", help="leave docs/models.md as it is")
    parser.add_argument("--table", action="store_true", help="only rewrite the table from kept measurements")
    parser.add_argument("--list", action="store_true", help="print the row names and stop")
    parser.add_argument("--step", choices=["build", *STEPS], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="directory for checkpoints and models (deleted row by row)")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(row.name for row in ALL_ROWS))
        return 0
    if arguments.step:
        row = any_row(arguments.row[0])
        if arguments.step == "build":
            build(row, arguments.work / "checkpoint", shallow=arguments.shallow)
        else:
            print(json.dumps(STEPS[arguments.step](row, arguments.work, arguments.images)))
        return 0
    if arguments.table:
        _write_table(json.loads(arguments.results.read_text()))
        return 0
    results: dict[str, Any] = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
    failed = []
    for row in ALL_ROWS if arguments.row is None else [any_row(name) for name in arguments.row]:
        with tempfile.TemporaryDirectory(dir=arguments.work, prefix="models-") as folder:
            measured = _measure(row, Path(folder), arguments.images, shallow=arguments.shallow)
        print(f"{row.name}: {measured}", flush=True)
        if "failure" in measured or not max(measured["errors"]) <= TOLERANCE:
            failed.append(row.name)
        results[row.name] = measured
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        if not arguments.no_table and not arguments.shallow:
            _write_table(results)
    print(f"{len(failed)} rows failed{': ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


def _measure(row: Row, folder: Path, images: Path, *, shallow: bool) -> dict[str, Any]:
    """Run the steps of a row, each in its own process."""
    measured: dict[str, Any] = {}
    for step in ("build", *STEPS):
        job = ("--step", step, "--row", row.name, "--work", folder, "--images", images)
        command = module_command("models", *job)
        command += ["--shallow"] if shallow else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        if done.returncode != 0:
            return {"failure": f"{step}: {(done.stderr.strip() or 'killed').splitlines()[-1]}"}
        if step != "build":
            measured.update(json.loads(done.stdout.splitlines()[-1]))
    return measured


def _peak_gb() -> float:
    """Return the largest resident size of this process in GB, mapped weight files included."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def _load(row: Row, folder: Path) -> Any:
    from vitexport.host.sources import load_model

    return load_model(settings_of(row, folder / "checkpoint"), image_size=row.image_size)


def _step_export(row: Row, folder: Path, images: Path) -> dict[str, Any]:
    from vitexport.host.export import export_onnx
    from vitexport.recipe.settings import ExportSettings

    loaded = _load(row, folder)
    started = time.perf_counter()
    result = export_onnx(loaded, ExportSettings(image_size=row.image_size), folder / "exported.onnx")
    return {
        "parameters": sum(p.numel() for p in loaded.module.parameters()),
        "image_size": list(loaded.metadata.preprocess.image_size),
        "outputs": [spec.name for spec in loaded.metadata.model.outputs],
        "export_seconds": round(time.perf_counter() - started, 1),
        "export_peak_gb": _peak_gb(),
        "nodes_exported": result.details["nodes"],
    }


def _step_simplify(row: Row, folder: Path, images: Path) -> dict[str, Any]:
    from vitexport.host.simplify import simplify_onnx
    from vitexport.recipe.settings import SimplifySettings

    started = time.perf_counter()
    result = simplify_onnx(folder / "exported.onnx", SimplifySettings(), folder / "simplified.onnx")
    files = (result.path, *result.companions)
    return {
        "nodes": result.details["nodes"],
        "simplify_seconds": round(time.perf_counter() - started, 1),
        "simplify_peak_gb": _peak_gb(),
        "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 1),
    }


def _step_reference(row: Row, folder: Path, images: Path) -> dict[str, Any]:
    import numpy as np

    from vitexport.inputs.images import batches, list_images
    from vitexport.runtimes.pytorch import PyTorchRuntime

    loaded = _load(row, folder)
    runtime = PyTorchRuntime.from_module(loaded.module, loaded.metadata.model.inputs, loaded.metadata.model.outputs)
    paths = list_images(images, limit=max(BATCHES))
    pixels = next(iter(batches(paths, loaded.metadata.preprocess, loaded.metadata.model.inputs[0], len(paths))))
    np.savez(folder / "reference.npz", pixel_values=pixels, **runtime.run({"pixel_values": pixels}))
    return {}


def _step_compare(row: Row, folder: Path, images: Path) -> dict[str, Any]:
    import numpy as np

    from vitexport.runtimes import open_runtime

    with np.load(folder / "reference.npz") as stored:
        reference = dict(stored)
    pixels = reference.pop("pixel_values")
    errors = []
    with open_runtime(folder / "simplified.onnx") as runtime:
        for batch in BATCHES:
            found = runtime.run({"pixel_values": pixels[:batch]})
            errors.append(max(_relative(reference[name][:batch], found[name]) for name in reference))
    return {"errors": errors, **_structure(folder / "simplified.onnx")}


def _structure(path: Path) -> dict[str, Any]:
    """Count the nodes of the largest block, and those in any block that a compiler would stumble over."""
    from vitexport.host.graph.file import read_onnx
    from vitexport.host.graph.layers import block_of, find_attention

    model = read_onnx(path)
    blocks = find_attention(model)
    inside = [(block, node) for node in model.graph if (block := block_of(node, blocks)) is not None]
    unwanted = Counter(
        node.op_type for _, node in inside if node.op_type in ("IsNaN", "Where", "Shape", "Expand", "Gemm")
    )
    return {
        "nodes_per_block": max(Counter(block for block, _ in inside).values(), default=0),
        "unwanted_in_blocks": dict(unwanted),
    }


def _relative(reference: Any, found: Any) -> float:
    """Return max |difference| / max |reference|; infinite where a value is not finite, or the reference is zero."""
    import numpy as np

    if reference.shape != found.shape or not np.isfinite(found).all() or not np.abs(reference).max() > 0:
        return float("inf")
    return float(np.abs(reference.astype(np.float64) - found).max() / np.abs(reference).max())


STEPS = {
    "export": _step_export,
    "simplify": _step_simplify,
    "reference": _step_reference,
    "compare": _step_compare,
}


def _write_table(results: dict[str, Any]) -> None:
    """Rewrite what stands between the markers in docs/models.md."""
    head = (
        "| model | library | outputs | pixels | parameters (M) | nodes: exported, canonical, per block | size (MB) "
        "| export, simplify (s) | peak memory: export, simplify (GB) | largest error at batch 1, 5 |\n"
        + "| --- " * 10
        + "|\n"
    )
    lines = []
    for row in ALL_ROWS:
        m = results.get(row.name)
        if m is None:
            continue
        if "failure" in m:
            lines.append(f"| `{row.name}` | {row.library} | failed: {m['failure']} |" + " |" * 7)
            continue
        lines.append(
            f"| `{row.name}` | {row.library} `{row.model}` | {', '.join(m['outputs'])} "
            f"| {m['image_size'][0]} x {m['image_size'][1]} | {m['parameters'] / 1e6:.1f} "
            f"| {m['nodes_exported']}, {m['nodes']}, {m['nodes_per_block']} | {m['megabytes']:.0f} "
            f"| {m['export_seconds']}, {m['simplify_seconds']} | {m['export_peak_gb']}, {m['simplify_peak_gb']} "
            f"| {m['errors'][0]:.1e}, {m['errors'][1]:.1e} |"
        )
    replace_section(TABLE, "models", head + "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
