"""Export against ``torch.onnx.export`` with onnxsim, and against optimum-onnx: time, memory, nodes and speed.

    python -m benchmarks.export [--row vit-b16-hf] [--rounds 3] [--seconds 20]

The checkpoint is built from its configuration with every parameter perturbed. Each export runs in a process of its
own, from checkpoint to finished file, in turns (A B A B), with medians; a peer that is not installed is skipped by
name. The graphs are then timed by turns in ONNX Runtime, batch 1, in one process. A second session of our own graph
gives the noise, and the largest difference from our logits shows that all compute the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.install import peer_python, why_absent
from benchmarks.peers.job import Job
from benchmarks.peers.launch import Outcome, PeerError, run_worker
from benchmarks.suites.arguments import command_parser
from benchmarks.suites.model_rows import build, row_named, source_of
from benchmarks.suites.paths import BENCHMARKS_PAGE, RESULTS
from benchmarks.suites.processes import environment, module_command
from benchmarks.suites.tables import markdown_table, replace_table, save_results

DEFAULT_ROWS = ("vit-b16-hf", "vit-b16-timm")


@dataclass(frozen=True)
class Tool:
    """One way from a checkpoint to an ONNX file.

    Attributes:
        name: As the table calls it.
        worker: Module of ``benchmarks/peers`` that runs it.
        options: What that worker is asked for.
        peer: Environment it runs in; None for this one.
    """

    name: str
    worker: str
    options: Mapping[str, Any]
    peer: str | None = None


def tools_for(library: str) -> tuple[Tool, ...]:
    """Return the tools that export a checkpoint of a library, ours first."""
    ours = Tool("vitexport", "export", {"input": "float32"})
    pixels = Tool("vitexport, uint8 pixels as input", "export", {"input": "uint8"})
    plain = Tool("torch.onnx.export + onnxsim", "torch", {"library": library})
    # optimum-onnx finds timm models on the hub only.
    optimum = (Tool("optimum-onnx", "optimum", {}, "optimum"),) if library == "huggingface" else ()
    return (ours, pixels, plain, *optimum)


def main() -> int:
    """Measure, print, keep."""
    parser = command_parser("export", __doc__)
    parser.add_argument("--row", action="append", help="model row (repeatable); the table keeps the others")
    parser.add_argument("--rounds", type=int, default=3, help="exports by each tool")
    parser.add_argument("--seconds", type=float, default=15, help="latency: measured seconds per graph")
    parser.add_argument("--shallow", action="store_true", help="two narrow blocks: a quick check of this script")
    parser.add_argument("--no-save", action="store_true", help="leave results and docs as they are")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.row or list(DEFAULT_ROWS)
    if arguments.build:
        build(row_named(names[0]), arguments.build, shallow=arguments.shallow)
        return 0
    path = RESULTS / "export.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() and not arguments.no_save else []
    rows = [row for row in kept if row["model"] not in names]
    for name in names:
        with tempfile.TemporaryDirectory(prefix="export-") as folder:
            rows += measure_row(
                name, Path(folder), rounds=arguments.rounds, seconds=arguments.seconds, shallow=arguments.shallow
            )
    print(markdown_table(rows))
    if not arguments.no_save:
        content = save_results("export", rows, ("torch", "onnxsim", "onnxruntime", "transformers", "timm"))
        replace_table(BENCHMARKS_PAGE, "export", content)
    return 0


def measure_row(name: str, folder: Path, *, rounds: int, seconds: float, shallow: bool) -> list[dict[str, Any]]:
    """Return a table row per tool, for one model row."""
    row = row_named(name)
    # In another process, so that this one stays small and cold.
    command = module_command("export", "--row", name, "--build", folder / "checkpoint")
    subprocess.run(command + (["--shallow"] if shallow else []), check=True, env=environment())
    outcomes: dict[str, list[Outcome]] = {}
    notes: dict[str, str] = {}
    tools = tools_for(row.library)
    for _ in range(rounds):
        for tool in tools:
            source = source_of(row, folder / "checkpoint") if tool.worker == "export" else str(folder / "checkpoint")
            if tool.name not in notes:
                try:
                    outcomes.setdefault(tool.name, []).append(_export(tool, source, _file(folder, tool)))
                except PeerError as error:
                    notes[tool.name] = str(error)
    made = {tool.name: _file(folder, tool) for tool in tools if tool.name not in notes}
    latency, difference = compare_graphs(made, seconds)
    rows = []
    for tool in tools:
        entry: dict[str, Any] = {"model": name, "tool": tool.name}
        if tool.name in notes:
            rows.append({**entry, "note": notes[tool.name]})
            continue
        mine, base = outcomes[tool.name], outcomes[tools[0].name]
        package = next(iter(mine[0].versions))
        rows.append(
            {
                **entry,
                "version": f"{package} {mine[0].versions[package]}",
                "seconds": statistics.median(one.seconds for one in mine),
                "seconds / ours": statistics.median(a.seconds / b.seconds for a, b in zip(mine, base, strict=True)),
                "peak GB": max(one.peak_bytes for one in mine) / 1e9,
                "nodes": _nodes(made[tool.name]),
                "latency / ours": latency[tool.name],
                "largest difference": difference[tool.name],
            }
        )
    return [*rows, {"model": name, "tool": "vitexport again (noise)", "latency / ours": latency["again"]}]


def _file(folder: Path, tool: Tool) -> Path:
    return folder / f"{tool.worker}-{tool.options.get('input', 'float32')}" / "model.onnx"


def _export(tool: Tool, source: str, out: Path) -> Outcome:
    python = Path(sys.executable) if tool.peer is None else peer_python(tool.peer)
    if python is None:
        raise PeerError(f"{tool.peer} {why_absent(tool.peer or '')}")
    out.parent.mkdir(exist_ok=True)
    out.unlink(missing_ok=True)
    return run_worker(python, tool.worker, Job(source, (), str(out), tool.options))


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(str(path), load_external_data=False).graph.node)


def compare_graphs(files: Mapping[str, Path], seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """Time graphs by turns on one image, and compare their logits with the first's.

    Args:
        files: ONNX file by name; the first is ours and is opened a second time as ``again``.
        seconds: Measured seconds per graph.

    Returns:
        Median latency over the first's, and max |difference| / max |first's logits|; both by name.
    """
    import onnxruntime as ort

    from vitexport.benchmark.latency import interleave

    first = next(iter(files))
    sessions = {
        name: ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for name, path in {**files, "again": files[first]}.items()
    }
    pixels = np.random.default_rng(0)
    shape = sessions[first].get_inputs()[0].shape
    image = pixels.integers(0, 256, size=(1, *shape[2:], shape[1]), dtype=np.uint8)
    planes = ((image.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)
    calls: dict[str, Callable[[], Sequence[Any]]] = {}
    for name, session in sessions.items():
        given = session.get_inputs()[0]
        feed = {given.name: image if given.type == "tensor(uint8)" else np.ascontiguousarray(planes)}
        calls[name] = partial(session.run, None, feed)
    logits = {name: call()[0] for name, call in calls.items()}
    times = interleave(calls, seconds=seconds)
    scale = float(np.abs(logits[first]).max())
    return (
        {name: float(np.median(taken / times[first])) for name, taken in times.items()},
        {name: float(np.abs(values - logits[first]).max()) / scale for name, values in logits.items()},
    )


if __name__ == "__main__":
    sys.exit(main())
