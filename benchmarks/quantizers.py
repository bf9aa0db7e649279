"""Quantizers side by side: the same ONNX graphs, the same calibration images, the same judge.

    python -m benchmarks.quantizers                       every model, every row, every question
    python -m benchmarks.quantizers --model augreg-tiny   one model; the others keep what was measured before
    python -m benchmarks.quantizers --only nncf-mixed     one row of every model that has it
    python -m benchmarks.quantizers --ask time            only the interleaved time ratios
    python -m benchmarks.quantizers --source DIRECTORY    a model of yours: its figures are printed and not kept

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.job import Job, feeds
from benchmarks.peers.launch import PeerError
from benchmarks.suites.arguments import command_parser
from benchmarks.suites.eight_bit import count_eight_bit
from benchmarks.suites.paths import RESULTS, SAMPLE
from benchmarks.suites.processes import environment, module_command
from benchmarks.suites.quantized_models import Score, main_output, score, tensorrt_verdict
from benchmarks.suites.quantizer_bench import Bench, Images, prepare
from benchmarks.suites.quantizer_rows import BASELINE, MODELS, ROWS, Figures, Model, Row, merge, rows_of
from benchmarks.suites.quantizer_tables import best_per_model, figures_of
from benchmarks.suites.tables import render_documents, save_results, text_table
from vitexport.errors import RuntimeBackendError

REFUSED = "does not open"
QUESTIONS = ("quantize", "accuracy", "latency", "time")


def main() -> int:
    """Measure, print, keep."""
    parser = command_parser("quantizers", __doc__)
    parser.add_argument("--model", action="append", choices=[model.name for model in MODELS], help="only this model")
    parser.add_argument("--source", help="a model of yours in place of these; its figures are printed and not kept")
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
    if arguments.model and arguments.source:
        parser.error("--model and --source exclude each other")
    chosen = list(_chosen(arguments))
    if not chosen:
        parser.error("none of these rows is measured on these models")
    fresh = arguments.no_save or bool(arguments.source)
    images, measured = _images(arguments), {}
    with tempfile.TemporaryDirectory(prefix="quantizers-") as folder:
        for model, rows in chosen:
            bench = prepare(model, images, (arguments.work or Path(folder)).resolve() / model.name)
            found = measure_rows(
                bench,
                rows,
                arguments.ask or QUESTIONS,
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                keep=partial(_print if fresh else _save, model.name),
            )
            measured.update({(model.name, name): figures for name, figures in found.items()})
    _show(merge([] if fresh else _kept(), measured), [model.name for model, _ in chosen])
    return 0


def _chosen(arguments: argparse.Namespace) -> Iterator[tuple[Model, list[Row]]]:
    """Yield each model that was asked for with its rows, unless it has none of them."""
    models = MODELS if arguments.source is None else (Model("source", arguments.source),)
    for model in models:
        rows = [row for row in rows_of(model) if arguments.only is None or row.name in arguments.only]
        if rows and (arguments.model is None or model.name in arguments.model):
            yield model, rows


Keep = Callable[[str, Figures], None]


def _print(model: str, name: str, figures: Figures) -> None:
    print(f"{model}, {name}: {json.dumps(dict(figures))}", flush=True)


def _save(model: str, name: str, figures: Figures) -> None:
    """Keep a row's new figures at once, so that an interrupted run loses nothing that it measured."""
    _print(model, name, figures)
    save_results("quantizers", merge(_kept(), {(model, name): figures}), ("onnxruntime", "onnx", "numpy"))
    render_documents()


def _show(rows: Sequence[Figures], models: Sequence[str]) -> None:
    for model in models:
        print("\n" + text_table(model, figures_of(model, rows)))
    print("\n" + text_table("SQNR dB / agreement % / top-1 change", best_per_model(rows)))


def _images(arguments: argparse.Namespace) -> Images:
    from vitexport.inputs.images import list_images
    from vitexport.inputs.labels import find_targets

    evaluation = list_images(arguments.images.resolve(), limit=arguments.limit)
    labels = find_targets(arguments.images.resolve(), evaluation, arguments.labels)
    if labels is None:
        raise SystemExit(f"'{arguments.labels}' does not label the images of '{arguments.images}'")
    return Images(list_images(arguments.calibration.resolve(), limit=arguments.count), evaluation, labels)


def _kept() -> list[dict[str, Any]]:
    path = RESULTS / "quantizers.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else []


def measure_rows(
    bench: Bench, rows: Sequence[Row], asked: Sequence[str], *, rounds: int, seconds: float, keep: Keep | None = None
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
            if keep is not None:
                keep(name, figures)

    if "quantize" in asked:
        add((row.name, _ask_quantize(bench, row)) for row in rows)
    made = [row for row in rows if bench.file(row).is_file() and "note" not in measured.get(row.name, {})]
    if "accuracy" in asked and made:
        add(_ask_accuracy(bench, made))
    if "latency" in asked and made:
        add(_ask_latency(bench, made, seconds))
    timed = [row for row in rows if (row.timed or row.name == BASELINE) and "note" not in measured.get(row.name, {})]
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
        **({} if eight.work is None else {"int8 MACs %": round(100 * eight.work, 2)}),
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
    from vitexport.host.graph.file import read_onnx

    job = Job(str(bench.model), tuple(str(path) for path in bench.evaluation), "")
    images = [
        array.astype(np.float32)
        for feed in feeds(job, read_onnx(bench.model).metadata_props)
        for array in feed.values()
    ]
    reference = main_output(bench.model, images)
    for row in rows:
        try:
            written = score(reference, main_output(bench.file(row), images, optimize=False), bench.labels)
        except RuntimeBackendError as error:
            yield row.name, {"note": f"ONNX Runtime does not compute it: {error}"}
            continue
        figures = _accuracy(written)
        try:
            here = _accuracy(score(reference, main_output(bench.file(row), images), bench.labels))
        except RuntimeBackendError:
            # ONNX Runtime 1.31 fuses float8 Q/DQ into integer kernels that then refuse the type.
            here = dict.fromkeys(figures, REFUSED)
        here.pop("top-1 change", None)
        yield row.name, {**figures, **{f"{column} on this CPU": value for column, value in here.items()}}


def _accuracy(found: Score) -> dict[str, Any]:
    """Return what is known of a score by column; a model of features has no classes to agree on."""
    figures = {"SQNR dB": found.sqnr_db, "agreement %": found.agreement, "top-1 change": found.top1_change}
    return {column: round(value, 2) for column, value in figures.items() if value is not None}


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
