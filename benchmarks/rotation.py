"""What a rotation before fc2 costs and does: latency on this CPU by block size, and the plot of docs/quantization.md.

    python -m benchmarks.rotation                 latency of `ort-x86` int8, then the plot
    python -m benchmarks.rotation --ask plot      only the plot

Latency is that of a file whose every fc2 is rotated over that of the same file without, interleaved; ``as chosen`` is
what ``--rotate auto`` makes of it. ViT-B/16 has random weights, which change no kernel. The plot is the report's own,
of the AugReg ViT-Ti/16.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suites.arguments import command_parser
from benchmarks.suites.inference_models import prepare_float
from benchmarks.suites.paths import QUANTIZATION_PAGE, ROOT, SAMPLE, SHARED
from benchmarks.suites.tables import markdown_table, replace_table, save_results

LATENCY_MODELS = {
    "ViT-B/16": "vit-b16-timm",
    "DeiT-Tiny": f"timm:local-dir:{SHARED / 'models' / 'deit-tiny-timm'}",
}
PLOTTED = f"timm:local-dir:{SHARED / 'models' / 'vit-tiny-augreg-timm'}"
PLOT = ROOT / "docs" / "massive-activations.svg"
SIZES = ("none", "16", "64", "auto")


def main() -> int:
    """Measure, print, keep."""
    parser = command_parser("rotation", __doc__)
    parser.add_argument("--ask", action="append", choices=("latency", "plot"), help="only this (repeatable)")
    parser.add_argument("--batch", type=int, action="append", help="batch sizes (default 1 and 8)")
    parser.add_argument("--seconds", type=float, default=20, help="measured seconds per file")
    parser.add_argument("--no-save", action="store_true", help="leave results and docs as they are")
    arguments = parser.parse_args()
    asked = arguments.ask or ("latency", "plot")
    with tempfile.TemporaryDirectory() as folder:
        if "latency" in asked:
            rows = list(_latency(Path(folder), arguments.batch or (1, 8), arguments.seconds))
            print(markdown_table(rows))
            if not arguments.no_save:
                replace_table(QUANTIZATION_PAGE, "rotation", save_results("rotation", rows, ("onnxruntime",)))
        if "plot" in asked:
            _plot(Path(folder), Path(folder) / PLOT.name if arguments.no_save else PLOT)
    return 0


def _latency(folder: Path, batches: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    from vitexport.benchmark.latency import interleave
    from vitexport.host.quantize import quantize_onnx
    from vitexport.inputs.images import list_images
    from vitexport.recipe.settings import QuantizeSettings
    from vitexport.runtimes import open_runtime

    for title, source in LATENCY_MODELS.items():
        work = folder / title.replace("/", "")
        prepare_float(source, work, SAMPLE)
        images = list_images(SAMPLE / "calib", limit=64)
        runtimes = {}
        for size in SIZES:
            # Islands would change more than the rotation does.
            settings = QuantizeSettings.model_validate({"target": "ort-x86", "rotate": size, "keep_float": "none"})
            done = quantize_onnx(work / "ours.onnx", images, settings, work / f"{size}.onnx")
            print(title, size, [entry["rotation"] for entry in done.details["ranges"] if entry["rotation"]], flush=True)
            runtimes[size] = open_runtime(done.path)
        for batch in batches:
            tensor = runtimes["none"].inputs[0]
            feed = {tensor.name: np.random.default_rng(0).standard_normal((batch, *tensor.shape[1:]), dtype=np.float32)}
            calls = {size: (lambda runtime=runtime, feed=feed: runtime.run(feed)) for size, runtime in runtimes.items()}
            times = interleave(calls, seconds=seconds)
            ratios = {size: float(np.median(times[size] / times["none"])) for size in SIZES[1:]}
            named = {"16 channels": ratios["16"], "64 channels": ratios["64"], "as chosen": ratios["auto"]}
            yield {"model": title, "batch": batch, **{name: round(ratio, 3) for name, ratio in named.items()}}


def _plot(folder: Path, out: Path) -> None:
    from vitexport.host.quantize import quantize_onnx
    from vitexport.inputs.images import list_images
    from vitexport.recipe.settings import QuantizeSettings
    from vitexport.report.activations_plot import activations

    prepare_float(PLOTTED, folder / "plotted", SAMPLE)
    settings = QuantizeSettings(target="tensorrt")
    images = list_images(SAMPLE / "calib")
    done = quantize_onnx(folder / "plotted" / "ours.onnx", images, settings, folder / "int8.onnx")
    (figure,) = activations({"quantization": {"int8": done.details}})
    out.write_text(_standalone(figure.svg), encoding="utf-8")
    print(figure.summary)


def _standalone(svg: str) -> str:
    """Give a drawing of the report's the colours that its page would: its style sheet starts with them."""
    style = (ROOT / "vitexport" / "report" / "templates" / "style.css").read_text(encoding="utf-8")
    colours = style[: style.index("\n}", style.index("@media")) + 2]
    head, rest = svg.split(">", 1)
    return f"{head}><style>{colours} text {{ font-family: system-ui, sans-serif }}</style>{rest}\n"


if __name__ == "__main__":
    sys.exit(main())
