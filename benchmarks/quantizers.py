"""Quantizers side by side: the same ONNX graph, the same calibration images, the same judge.

    python -m benchmarks.quantizers                       every row, every question
    python -m benchmarks.quantizers --only nncf-mixed     one row; the others keep what was measured before
    python -m benchmarks.quantizers --ask time            only the interleaved time ratios

Each quantization runs in a process of its own, in the environment of its tool (``make peers``); its clock runs from
image files to the written file. The files are judged on other images, one at a time, in ONNX Runtime: with graph
optimisations off, which computes what the file says, and with default options, which runs this CPU's integer kernels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.install import why_absent
from benchmarks.peers.job import Job
from benchmarks.peers.launch import Outcome, PeerError, run_worker
from benchmarks.suites.arguments import command_parser
from benchmarks.suites.paths import BENCHMARKS_PAGE, RESULTS, SAMPLE, SHARED
from benchmarks.suites.processes import environment, module_command
from benchmarks.suites.quantized_models import count_eight_bit, logits_of, score, tensorrt_verdict
from benchmarks.suites.quantizer_rows import BASELINE, ROWS, Row, merge
from benchmarks.suites.tables import markdown_table, replace_table, save_results
from vitexport.errors import RuntimeBackendError

REFUSED = "does not open"
QUESTIONS = ("quantize", "accuracy", "latency", "time")


@dataclass(frozen=True)
class Bench:
    """What is quantized and judged, and where files go.

    Attributes:
        model: Float ONNX file.
        calibration: Calibration images.
        evaluation: Images that judge.
        labels: Class index of each of those.
        work: Folder of the quantized files.
    """

    model: Path
    calibration: tuple[Path, ...]
    evaluation: tuple[Path, ...]
    labels: tuple[int, ...]
    work: Path

    def file(self, row: Row) -> Path:
        """Return where a row's quantized model is."""
        return self.work / row.name / "model.onnx"

    def quantize(self, row: Row, out: Path) -> Outcome:
        """Quantize once.

        Raises:
            PeerError: The peer is not installed, or failed.
        """
        python = row.python()
        if python is None:
            raise PeerError(f"{row.peer} {why_absent(row.peer or '')}")
        options = dict(row.options)
        if row.name == BASELINE:
            options["nodes"] = _layers(self.model)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        images = tuple(str(path) for path in self.calibration)
        return run_worker(python, row.worker, Job(str(self.model), images, str(out), options))


def _layers(model: Path) -> list[str]:
    """Return the nodes that this package quantizes by default."""
    from vitexport.host.graph.file import read_onnx
    from vitexport.host.quantize.planning.layers import choose_layers

    return [str(layer.linear.matmul.name) for layer in choose_layers(read_onnx(model), where=str(model))]


def main() -> int:
    """Measure, print, keep."""
    parser = command_parser("quantizers", __doc__)
    parser.add_argument("--source", default=str(SHARED / "models" / "deit-tiny-hf"), help="model to quantize")
    parser.add_argument("--calibration", type=Path, default=SAMPLE / "calib")
    parser.add_argument("--images", type=Path, default=SAMPLE / "dev", help="images that judge")
    parser.add_argument("--labels", type=Path, default=SAMPLE / "synsets.json")
    parser.add_argument("--count", type=int, default=128, help="calibration images")
    parser.add_argument("--limit", type=int, help="judge on this many images only")
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS], metavar="NAME")
    parser.add_argument("--ask", action="append", choices=QUESTIONS, help="only this question (repeatable)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the time ratios")
    parser.add_argument("--seconds", type=float, default=4, help="latency: measured seconds per model")
    parser.add_argument("--work", type=Path, help="keep models here, so that questions can be asked in separate calls")
    parser.add_argument("--no-save", action="store_true", help="leave results and docs as they are")
    parser.add_argument("--parse", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.parse:
        print(json.dumps(dict(tensorrt_verdict(arguments.parse))))
        return 0
    chosen = [row for row in ROWS if arguments.only is None or row.name in arguments.only]
    asked = arguments.ask or QUESTIONS
    keep = _print if arguments.no_save else _save
    with tempfile.TemporaryDirectory(prefix="quantizers-") as folder:
        bench = _prepare(arguments, (arguments.work or Path(folder)).resolve())
        measured = measure_rows(bench, chosen, asked, rounds=arguments.rounds, seconds=arguments.seconds, keep=keep)
    print(markdown_table(merge([] if arguments.no_save else _kept(), measured)))
    return 0


Keep = Callable[[str, Mapping[str, Any]], None]


def _print(name: str, figures: Mapping[str, Any]) -> None:
    print(f"{name}: {json.dumps(dict(figures))}", flush=True)


def _save(name: str, figures: Mapping[str, Any]) -> None:
    """Keep a row's new figures at once, so that an interrupted run loses nothing that it measured."""
    _print(name, figures)
    content = save_results("quantizers", merge(_kept(), {name: figures}), ("onnxruntime", "onnx", "numpy"))
    replace_table(BENCHMARKS_PAGE, "quantizers", content)


def _prepare(arguments: argparse.Namespace, work: Path) -> Bench:
    from vitexport.inputs.images import list_images
    from vitexport.inputs.labels import find_targets

    work.mkdir(parents=True, exist_ok=True)
    model = work / "model.onnx"
    if not model.is_file():
        _export(arguments.source, model)
    evaluation = list_images(arguments.images.resolve(), limit=arguments.limit)
    labels = find_targets(arguments.images.resolve(), evaluation, arguments.labels)
    if labels is None:
        raise SystemExit(f"'{arguments.labels}' does not label the images of '{arguments.images}'")
    calibration = list_images(arguments.calibration.resolve(), limit=arguments.count)
    return Bench(model, calibration, evaluation, labels, work)


def _export(source: str, out: Path) -> None:
    from vitexport.host.export import export_onnx
    from vitexport.host.simplify import simplify_onnx
    from vitexport.host.sources import load_model
    from vitexport.recipe.settings import ExportSettings, ModelSettings, SimplifySettings

    exported = export_onnx(load_model(ModelSettings(source=source)), ExportSettings(), out.with_name("exported.onnx"))
    simplify_onnx(exported.path, SimplifySettings(), out)


def _kept() -> list[dict[str, Any]]:
    path = RESULTS / "quantizers.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else []


def measure_rows(
    bench: Bench, rows: Sequence[Row], asked: Sequence[str], *, rounds: int, seconds: float, keep: Keep = _print
) -> dict[str, dict[str, Any]]:
    """Return new figures by row name; a row that cannot be measured gets a ``note`` that says why.

    Args:
        bench: What is quantized and judged.
        rows: Which rows.
        asked: Of :data:`QUESTIONS`; files that an earlier call left in ``bench.work`` need not be made again.
        rounds: Turns of the time ratios.
        seconds: Latency: measured seconds per model.
        keep: Called with a row's name and its new figures as soon as there are some.
    """
    measured: dict[str, dict[str, Any]] = {}

    def add(found: Iterable[tuple[str, dict[str, Any]]]) -> None:
        for name, figures in found:
            measured.setdefault(name, {}).update(figures)
            keep(name, figures)

    if "quantize" in asked:
        add((row.name, _ask_quantize(bench, row)) for row in rows)
    made = [row for row in rows if bench.file(row).is_file() and "note" not in measured.get(row.name, {})]
    if "accuracy" in asked and made:
        add(_ask_accuracy(bench, made))
    if "latency" in asked and made:
        add(_ask_latency(bench, made, seconds))
    timed = [row for row in rows if row.timed or row.name == BASELINE]
    if "time" in asked and any(row.timed for row in timed):
        add(_ask_time(bench, timed, rounds))
    return measured


def _ask_quantize(bench: Bench, row: Row) -> dict[str, Any]:
    """Quantize once, right after the baseline, so that both see the same machine."""
    baseline = next(entry for entry in ROWS if entry.name == BASELINE)
    try:
        before = bench.quantize(baseline, bench.work / "again" / "model.onnx") if row is not baseline else None
        outcome = bench.quantize(row, bench.file(row))
    except PeerError as error:
        return {"note": str(error)}
    package = next(iter(outcome.versions))
    eight = count_eight_bit(bench.file(row))
    files = [path for path in bench.file(row).parent.iterdir() if path.is_file()]
    return {
        "version": f"{package} {outcome.versions[package]}",
        "TensorRT parses it": _parses(bench.file(row)),
        "8-bit: weighted, attention, other": f"{eight.weighted}, {eight.products}, {eight.others}",
        "seconds": outcome.seconds,
        "time / MinMax": outcome.seconds / before.seconds if before else 1.0,
        "peak GB": outcome.peak_bytes / 1e9,
        "MB": sum(path.stat().st_size for path in files) / 1e6,
    }


def _parses(path: Path) -> str:
    """Parse in another process: a vendor's crash is an answer too."""
    command = module_command("quantizers", "--parse", path)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        return "crashes"
    accepts = json.loads(done.stdout.splitlines()[-1])["accepts"]
    return "unknown" if accepts is None else "yes" if accepts else "no"


def _ask_accuracy(bench: Bench, rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Any]]]:
    from benchmarks.peers.job import feeds
    from vitexport.host.graph.file import read_onnx

    job = Job(str(bench.model), tuple(str(path) for path in bench.evaluation), "")
    images = [
        array.astype(np.float32)
        for feed in feeds(job, read_onnx(bench.model).metadata_props)
        for array in feed.values()
    ]
    reference = logits_of(bench.model, images)
    for row in rows:
        written = score(reference, logits_of(bench.file(row), images, optimize=False), bench.labels)
        entry: dict[str, Any] = {
            "SQNR dB": round(written.sqnr_db, 2),
            "agreement %": round(written.agreement, 2),
            "top-1 change": round(written.top1_change, 2),
        }
        try:
            here = score(reference, logits_of(bench.file(row), images), bench.labels)
            entry["SQNR dB on this CPU"] = round(here.sqnr_db, 2)
            entry["agreement % on this CPU"] = round(here.agreement, 2)
        except RuntimeBackendError:
            # ONNX Runtime 1.31 fuses float8 Q/DQ into integer kernels that then refuse the type.
            entry["SQNR dB on this CPU"] = entry["agreement % on this CPU"] = REFUSED
        yield row.name, entry


def _ask_latency(bench: Bench, rows: Sequence[Row], seconds: float) -> list[tuple[str, dict[str, Any]]]:
    """Return the median over rounds of each model's latency over the float model's, batch 1, default options."""
    from vitexport.benchmark.latency import interleave
    from vitexport.runtimes import open_runtime

    runtimes = {"float32": open_runtime(bench.model)}
    for row in rows:
        with suppress(RuntimeBackendError):  # the table says so
            runtimes[row.name] = open_runtime(bench.file(row))
    tensor = runtimes["float32"].inputs[0]
    shape = tuple(1 if isinstance(axis, str) else axis for axis in tensor.shape)
    feed = {tensor.name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    calls = {name: (lambda runtime=runtime: runtime.run(feed)) for name, runtime in runtimes.items()}
    times = interleave(calls, seconds=seconds)
    ratio = {name: float(np.median(taken / times["float32"])) for name, taken in times.items()}
    return [(row.name, {"latency / float32": ratio.get(row.name, REFUSED)}) for row in rows]


def _ask_time(bench: Bench, rows: Sequence[Row], rounds: int) -> list[tuple[str, dict[str, Any]]]:
    """Quantize in turns with the baseline, and return median seconds and the median ratio over the rounds."""
    rows = [next(row for row in ROWS if row.name == BASELINE), *(row for row in rows if row.name != BASELINE)]
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    for _ in range(rounds):
        for row in rows:
            seconds[row.name].append(bench.quantize(row, bench.work / "again" / "model.onnx").seconds)
            print(f"{row.name}: {seconds[row.name][-1]:.2f} s", flush=True)
    return [
        (
            name,
            {
                "seconds": statistics.median(taken),
                "time / MinMax": statistics.median(a / b for a, b in zip(taken, seconds[BASELINE], strict=True)),
            },
        )
        for name, taken in seconds.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
