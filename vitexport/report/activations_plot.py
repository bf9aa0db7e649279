"""The plot that explains massive activations: how far the input of every fc2 reaches, before and after rotation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitexport.report.plotting import INK, MUTED, SERIES, Figure, draw, legend_above

__all__ = ["activations"]

_TITLE = "Massive activations and rotation"


def activations(document: Mapping[str, Any]) -> list[Figure]:
    """Draw, per block, the largest magnitude of fc2's input before and after rotation, and that of its median channel.

    Args:
        document: Of the report; nothing is drawn where no model rotates or keeps an fc2 in float.
    """
    rows: dict[int, Mapping[str, Any]] = {}
    for data in document["quantization"].values():
        for entry in data["ranges"]:
            block, _, role = next(iter(entry.get("groups", ())), "").partition(".")
            if role == "fc2" and block.isdigit():
                rows[int(block)] = entry
    if len(rows) < 2 or not any(entry["rotation"] or entry["kept_float"] for entry in rows.values()):
        return []
    blocks = sorted(rows)
    before = {block: _reach(rows[block]["seen"]) for block in blocks}
    islands = [block for block in blocks if rows[block]["kept_float"]]
    rotated = [block for block in blocks if rows[block]["rotation"] and block not in islands]
    after = {block: _reach(rows[block]["transformed"]) for block in rotated}
    furthest = max(blocks, key=lambda block: before[block])
    spoken = _spoken(furthest, before, after, rows[furthest]["median_channel"], islands)
    with draw("activations", f"{_TITLE}. {spoken}", height=3.0) as picture:
        axes = picture.axes
        axes.plot(blocks, [rows[block]["median_channel"] for block in blocks], color=MUTED, label="median channel")
        axes.vlines(list(after), list(after.values()), [before[block] for block in after], color=MUTED, linewidth=0.8)
        axes.plot(blocks, list(before.values()), "o", color=SERIES[3], markersize=5, label="largest, seen")
        if after:
            axes.plot(list(after), list(after.values()), "o", color=SERIES[1], markersize=5, label="rotated")
        if islands:
            reach = [before[block] for block in islands]
            axes.plot(islands, reach, "o", color=INK, markersize=10, markerfacecolor="none", label="stays float")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(visible=False, axis="x")
        axes.set_xticks(blocks[:: max(1, -(-len(blocks) // 14))])
        axes.set_xlabel("block")
        axes.set_ylabel("magnitude")
        legend_above(axes)
    return [Figure("activations", _TITLE, f"The input of every fc2 on the calibration images. {spoken}", picture.svg)]


def _reach(ends: list[float]) -> float:
    # A logarithmic axis has no place for zero.
    return max(abs(end) for end in ends) or 1e-9


def _spoken(
    furthest: int, before: Mapping[int, float], after: Mapping[int, float], median: float, islands: list[int]
) -> str:
    said = f"Block {furthest} reaches furthest: {before[furthest]:.3g}, where its median channel reaches {median:.2g}"
    said += f"; rotated {after[furthest]:.3g}." if furthest in after else "."
    if not after:
        return f"{said} No block is rotated.{_float(islands)}"
    said += f" {len(after)} of {len(before)} blocks are rotated."
    return said + _float(islands)


def _float(islands: list[int]) -> str:
    if not islands:
        return ""
    return f" In float: {', '.join(map(str, islands))}."
