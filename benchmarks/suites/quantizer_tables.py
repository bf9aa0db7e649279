"""The tables of :mod:`benchmarks.quantizers`: the best of each tool per model, all figures of a model, and what ran."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.suites.quantizer_rows import ROWS, Figures

__all__ = ["best_per_model", "figures_of", "tools"]

_OURS, _OURS_TENSORRT = "vitexport-ort-x86", "vitexport-tensorrt"
"""What ``vitexport quantize`` writes by default, and with ``--target tensorrt``."""

# Ours are int8, which every GPU and CPU computes; FP8 needs other hardware.
_PEERS = {row.name for row in ROWS if row.worker != "vitexport" and row.options.get("mode") != "fp8"}

_HEADINGS = {
    "name": "name",
    "TensorRT parses it": "TensorRT",
    "8-bit: weighted, attention, other": "8-bit ops",
    "int8 MACs %": "int8 MACs %",
    "SQNR dB": "SQNR dB",
    "agreement %": "agree %",
    "top-1 change": "top-1",
    "SQNR dB on this CPU": "CPU dB",
    "agreement % on this CPU": "CPU agree %",
    "time / MinMax": "time",
    "peak GB": "peak GB",
    "MB": "MB",
    "latency / float32": "latency",
    "note": "note",
}
"""Columns of the results that are shown, under headings that let a row fit a terminal."""


def best_per_model(rows: Sequence[Figures]) -> list[dict[str, str]]:
    """Return a row per model: our two defaults as they are, and of all peers the one whose file is nearest to float32.

    Cells hold SQNR in dB, agreement in percent and top-1 change in points; SQNR alone for features.
    """
    table = []
    for model in dict.fromkeys(str(row["model"]) for row in rows):
        judged = [row for row in rows if row["model"] == model and "SQNR dB" in row]
        if not judged:
            continue
        peers = [row for row in judged if row["name"] in _PEERS]
        table.append(
            {
                "model": model,
                "vitexport, default": _cell(row for row in judged if row["name"] == _OURS),
                "vitexport, TensorRT": _cell(row for row in judged if row["name"] == _OURS_TENSORRT and _legal(row)),
                "best peer, TensorRT": _cell((row for row in peers if _legal(row)), named=True),
                "best peer": _cell(peers, named=True),
            }
        )
    return table


def figures_of(model: str, rows: Sequence[Figures]) -> list[dict[str, Any]]:
    """Return all rows of a model with the columns that are shown, fewer where none has a figure."""
    mine = [row for row in rows if row["model"] == model]
    shown = [key for key in _HEADINGS if any(key in row for row in mine)]
    return [{_HEADINGS[key]: row.get(key, "") for key in shown} for row in mine]


def tools(rows: Sequence[Figures]) -> list[dict[str, str]]:
    """Return what is behind each name: tool and setting and the versions that were measured."""
    table = []
    for name in dict.fromkeys(str(row["name"]) for row in rows):
        mine = [row for row in rows if row["name"] == name]
        versions = dict.fromkeys(str(row["version"]) for row in mine if "version" in row)
        table.append(
            {"name": name, "tool and setting": str(mine[0]["tool and setting"]), "version": ", ".join(versions)}
        )
    return table


def _legal(row: Figures) -> bool:
    return row.get("TensorRT parses it") == "yes"


def _cell(rows: Iterable[Figures], *, named: bool = False) -> str:
    """Return the figures of the best row, or nothing where there is none."""
    best = max(rows, key=lambda row: (row["SQNR dB"], row.get("agreement %", 0)), default=None)
    if best is None:
        return ""
    forms = {"SQNR dB": ".1f", "agreement %": ".1f", "top-1 change": "+.2f"}
    figures = " / ".join(format(best[key], form) for key, form in forms.items() if key in best)
    return f"{best['name']}: {figures}" if named else figures
