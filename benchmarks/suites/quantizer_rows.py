"""The rows of :mod:`benchmarks.quantizers`: which models, tools and settings, and how new figures join old ones."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.install import peer_python
from benchmarks.suites.paths import SHARED

__all__ = ["BASELINE", "COLUMNS", "MODELS", "ROWS", "Figures", "Model", "Row", "merge", "rows_of"]

Figures = Mapping[str, Any]
"""Figures by column."""

BASELINE = "onnxruntime-minmax-48"
"""What times are compared with: ONNX Runtime's MinMax quantization of the layers that this package quantizes."""

COLUMNS = (
    "model",
    "name",
    "tool and setting",
    "version",
    "TensorRT parses it",
    "8-bit: weighted, attention, other",
    "int8 MACs %",
    "SQNR dB",
    "agreement %",
    "top-1 change",
    "SQNR dB on this CPU",
    "agreement % on this CPU",
    "seconds",
    "time / MinMax",
    "peak GB",
    "MB",
    "latency / float32",
    "note",
)


@dataclass(frozen=True)
class Model:
    """One trained model.

    Attributes:
        name: What ``--model`` takes, and the folder of its files.
        source: Where its checkpoint is.
        brief: Only the rows that are measured everywhere.
    """

    name: str
    source: str
    brief: bool = False


MODELS = (
    Model("deit-tiny", str(SHARED / "models" / "deit-tiny-hf")),
    # Massive activations from its seventh block on: the hard case of int8.
    Model("augreg-tiny", f"timm:local-dir:{SHARED / 'models' / 'vit-tiny-augreg-timm'}", brief=True),
    # Features, no classes.
    Model("dinov2-small", str(SHARED / "models" / "dinov2-small-hf"), brief=True),
)


@dataclass(frozen=True)
class Row:
    """One tool with one setting.

    Attributes:
        name: What ``--only`` takes.
        title: Tool and setting.
        worker: Module of ``benchmarks/peers`` that runs it.
        options: What that worker is asked for.
        peer: Environment it runs in; None for this one.
        timed: Whether its time is measured in turns with :data:`BASELINE`.
        everywhere: Whether it is measured on every model; otherwise only on those that are not brief.
    """

    name: str
    title: str
    worker: str
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: str | None = None
    timed: bool = False
    everywhere: bool = True

    def python(self) -> Path | None:
        """Return the interpreter that runs it, or None where the peer is not installed."""
        return Path(sys.executable) if self.peer is None else peer_python(self.peer)


def _ours(name: str, title: str, *, timed: bool = False, everywhere: bool = True, **options: Any) -> Row:
    return Row(name, f"vitexport, {title}", "vitexport", options, timed=timed, everywhere=everywhere)


def _ort(name: str, title: str, method: str, *, everywhere: bool = True, **options: str) -> Row:
    options = {"method": method, **options}
    return Row(f"onnxruntime-{name}", f"ONNX Runtime {title}", "onnxruntime", options, everywhere=everywhere)


def _modelopt(mode: str, method: str, *, everywhere: bool = True) -> Row:
    name, title = f"modelopt-{mode}-{method}", f"ModelOpt ONNX {mode}, {method}"
    return Row(name, title, "modelopt", {"mode": mode, "method": method}, "modelopt", everywhere=everywhere)


def _nncf(name: str, title: str, preset: str, *, smooth_quant: bool, everywhere: bool = True) -> Row:
    options = {"preset": preset, "smooth_quant": smooth_quant}
    return Row(f"nncf-{name}", f"NNCF {title}", "nncf", options, "nncf", everywhere=everywhere)


ROWS = (
    _ours("vitexport", "`portable`: symmetric int8, float32 body", target="portable", timed=True),
    _ours(
        "vitexport-fast", "`portable`, `--preset fast`", target="portable", preset="fast", timed=True, everywhere=False
    ),
    _ours("vitexport-tensorrt", "`tensorrt`: symmetric int8, float16 body", target="tensorrt", timed=True),
    _ours(
        "vitexport-attention", "`portable`, `--attention int8`", target="portable", attention="int8", everywhere=False
    ),
    _ours(
        "vitexport-attention-20db",
        "`portable`, `--attention int8`, `--min-sqnr-db 20`",
        target="portable",
        attention="int8",
        budget={"min_sqnr_db": 20},
        everywhere=False,
    ),
    _ours("vitexport-attention-tensorrt", "`tensorrt`, `--attention int8`", target="tensorrt", attention="int8"),
    _ours("vitexport-rows-tensorrt", "`tensorrt`, `--attention int8-rows`", target="tensorrt", attention="int8-rows"),
    _ours("vitexport-ort-x86", "`ort-x86`: no 16-bit sum overflows without VNNI", target="ort-x86", timed=True),
    _ours("vitexport-attention-x86", "`ort-x86`, `--attention int8`", target="ort-x86", attention="int8"),
    _ours("vitexport-rows-x86", "`ort-x86`, `--attention int8-rows`", target="ort-x86", attention="int8-rows"),
    _ours("vitexport-fp8", "`portable`, `--precision fp8`", target="portable", precision="fp8"),
    _ort("minmax-48", "static s8s8, MinMax, our layers only", "MinMax"),
    _ort("minmax", "static s8s8, MinMax", "MinMax"),
    _ort("percentile", "static s8s8, Percentile", "Percentile", everywhere=False),
    _ort("entropy", "static s8s8, Entropy", "Entropy", everywhere=False),
    _ort("u8s8", "static u8s8, MinMax", "MinMax", activation="QUInt8"),
    _ort("dynamic", "dynamic", "dynamic"),
    _modelopt("int8", "max"),
    _modelopt("int8", "entropy", everywhere=False),
    _modelopt("fp8", "max", everywhere=False),
    _nncf("performance", "performance preset", "performance", smooth_quant=True, everywhere=False),
    _nncf("performance-plain", "performance preset, no SmoothQuant", "performance", smooth_quant=False),
    _nncf("mixed", "mixed preset, no SmoothQuant", "mixed", smooth_quant=False),
)


def rows_of(model: Model) -> tuple[Row, ...]:
    """Return the rows that are measured on a model."""
    return tuple(row for row in ROWS if row.everywhere or not model.brief)


def merge(kept: Sequence[Figures], measured: Mapping[tuple[str, str], Figures]) -> list[dict[str, Any]]:
    """Return rows in the order of :data:`MODELS` and :data:`ROWS`: what was measured now over what was kept before.

    A note (skipped, failed) drops the figures that it contradicts; new figures drop an old note.

    Args:
        kept: Rows as this function returned them.
        measured: New figures by the names of model and row; models that :data:`MODELS` lacks come last.
    """
    before = {(row["model"], row["name"]): row for row in kept}
    models = dict.fromkeys([*(model.name for model in MODELS), *(model for model, _ in measured)])
    rows = []
    for model, row in itertools.product(models, ROWS):
        old, new = before.get((model, row.name), {}), measured.get((model, row.name), {})
        if not old and not new:
            continue
        if "note" in new:
            old = {}
        elif new:
            old = {key: value for key, value in old.items() if key != "note"}
        merged = {**old, **new, "model": model, "name": row.name, "tool and setting": row.title}
        rows.append({key: merged[key] for key in COLUMNS if key in merged})
    return rows
