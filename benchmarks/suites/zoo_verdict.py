"""What the measurements of a zoo row say: right, refused, WRONG, or not built, where the library itself fails."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from benchmarks.suites.zoo_rows import ZooRow

__all__ = ["TOLERANCE", "is_wrong", "judge", "table_row"]

TOLERANCE = 1e-4
"""Largest max |difference| / max |reference| that is called right without further words."""

_LONGEST = 160
"""Characters of an error that a cell shows."""

_TIMES_ROUNDING = 30
"""Beyond it a file may be so many times as far from float64 as float32 PyTorch is: kernels sum in other orders, and a
model that makes 5e-5 of its own rounding makes about as much more of another's."""


def judge(step: Mapping[str, Any]) -> str:
    """Return the verdict on an export: ``right ...``, ``refused: ...`` or ``WRONG: ...``."""
    if "refused" in step:
        return f"refused: {step['refused']}"
    if "errors" not in step:
        return f"WRONG: {step.get('failed', 'not measured')}"
    worst, exact, rounding = max(step["errors"]), max(step["from_float64"]), step["float32_from_float64"]
    if worst <= TOLERANCE:
        return "right"
    said = f"float32 PyTorch is {rounding:.1e} from float64, the file {exact:.1e}"
    return f"right: {said}" if exact <= max(TOLERANCE, _TIMES_ROUNDING * rounding) else f"WRONG: {said}"


def table_row(row: ZooRow, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the cells of a row."""
    build, export, int8, plain = (measured.get(step, {}) for step in ("build", "export", "int8", "plain"))
    cells: dict[str, Any] = {"model": row.model, "library": row.library, "family": row.group}
    cells["parameters (M)"] = round(build["parameters"] / 1e6, 1) if "parameters" in build else ""
    cells["outputs"] = ", ".join(export.get("outputs", ()))
    cells["error at batch 1, 3"] = _figures(export)
    cells["int8 SQNR dB"] = _decibels(int8)
    cells["torch.onnx.export"] = _figures(plain) or plain.get("failed", "")
    cells["verdict"] = f"not built: {build['failed']}" if "failed" in build else judge(export)
    return {name: shorten(cell, _LONGEST) if isinstance(cell, str) else cell for name, cell in cells.items()}


def is_wrong(cells: Mapping[str, Any]) -> bool:
    """Return whether the export or the quantization of a row is wrong."""
    return any(str(cells[name]).startswith("WRONG") for name in ("verdict", "int8 SQNR dB"))


def _figures(step: Mapping[str, Any]) -> str:
    return ", ".join(f"{error:.1e}" for error in step.get("errors", ()))


def _decibels(step: Mapping[str, Any]) -> str:
    if "sqnr_db" in step:
        figure = "not measured" if step["sqnr_db"] is None else f"{step['sqnr_db']:.1f}"
        return f"{figure} ({step['layers']} layers)"
    if "refused" in step:
        return f"refused: {step['refused']}"
    return f"WRONG: {step['failed']}" if "failed" in step else ""
