"""The rows of :mod:`benchmarks.quantizers`: which tools with which settings, and how new figures join old ones."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.install import peer_python

__all__ = ["BASELINE", "COLUMNS", "ROWS", "Row", "merge"]

BASELINE = "onnxruntime-minmax-48"
"""What times are compared with: ONNX Runtime's MinMax quantization of the layers that this package quantizes."""

COLUMNS = (
    "name",
    "tool and setting",
    "version",
    "TensorRT parses it",
    "8-bit: weighted, attention, other",
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
class Row:
    """One tool with one setting.

    Attributes:
        name: What ``--only`` takes.
        title: Tool and setting.
        worker: Module of ``benchmarks/peers`` that runs it.
        options: What that worker is asked for.
        peer: Environment it runs in; None for this one.
        timed: Whether its time is measured in turns with :data:`BASELINE`.
    """

    name: str
    title: str
    worker: str
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: str | None = None
    timed: bool = False

    def python(self) -> Path | None:
        """Return the interpreter that runs it, or None where the peer is not installed."""
        return Path(sys.executable) if self.peer is None else peer_python(self.peer)


def _ours(name: str, title: str, *, timed: bool = False, **options: Any) -> Row:
    return Row(name, f"vitexport, {title}", "vitexport", options, timed=timed)


def _ort(name: str, title: str, method: str, **options: str) -> Row:
    return Row(f"onnxruntime-{name}", f"ONNX Runtime {title}", "onnxruntime", {"method": method, **options})


def _modelopt(mode: str, method: str) -> Row:
    options = {"mode": mode, "method": method}
    return Row(f"modelopt-{mode}-{method}", f"ModelOpt ONNX {mode}, {method}", "modelopt", options, "modelopt")


def _nncf(name: str, title: str, preset: str, *, smooth_quant: bool) -> Row:
    return Row(f"nncf-{name}", f"NNCF {title}", "nncf", {"preset": preset, "smooth_quant": smooth_quant}, "nncf")


ROWS = (
    _ours("vitexport", "`portable`: symmetric int8, float32 body", target="portable", timed=True),
    _ours("vitexport-fast", "symmetric int8, `--preset fast`", target="portable", preset="fast", timed=True),
    _ours("vitexport-tensorrt", "`tensorrt`: symmetric int8, float16 body", target="tensorrt"),
    _ours("vitexport-attention", "symmetric int8, attention products too", target="portable", attention="int8"),
    _ours(
        "vitexport-attention-20db",
        "symmetric int8, attention products too, `--min-sqnr-db 20`",
        target="portable",
        attention="int8",
        budget={"min_sqnr_db": 20},
    ),
    _ours("vitexport-ort-x86", "`ort-x86`: no 16-bit sum overflows without VNNI", target="ort-x86"),
    _ours(
        "vitexport-attention-x86",
        "`ort-x86`, attention products too",
        target="ort-x86",
        attention="int8",
    ),
    _ours("vitexport-fp8", "`--precision fp8`, float32 body", target="portable", precision="fp8"),
    _ort("minmax-48", "static s8s8, MinMax, our layers only", "MinMax"),
    _ort("minmax", "static s8s8, MinMax", "MinMax"),
    _ort("percentile", "static s8s8, Percentile", "Percentile"),
    _ort("entropy", "static s8s8, Entropy", "Entropy"),
    _ort("u8s8", "static u8s8, MinMax", "MinMax", activation="QUInt8"),
    _ort("dynamic", "dynamic", "dynamic"),
    _modelopt("int8", "max"),
    _modelopt("int8", "entropy"),
    _modelopt("fp8", "max"),
    _nncf("performance", "performance preset", "performance", smooth_quant=True),
    _nncf("performance-plain", "performance preset, no SmoothQuant", "performance", smooth_quant=False),
    _nncf("mixed", "mixed preset, no SmoothQuant", "mixed", smooth_quant=False),
)


def merge(kept: Sequence[Mapping[str, Any]], measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in the order of :data:`ROWS`: what was measured now over what was kept before.

    A note (skipped, failed) drops the figures that it contradicts; new figures drop an old note.
    """
    before = {row["name"]: row for row in kept}
    rows = []
    for row in ROWS:
        old, new = before.get(row.name, {}), measured.get(row.name, {})
        if not old and not new:
            continue
        if "note" in new:
            old = {}
        elif new:
            old = {key: value for key, value in old.items() if key != "note"}
        merged = {**old, **new, "name": row.name, "tool and setting": row.title}
        rows.append({key: merged[key] for key in COLUMNS if key in merged})
    return rows
