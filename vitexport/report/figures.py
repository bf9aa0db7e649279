"""The plots of a report, drawn from its document. A plot whose data was not measured is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitexport.report.activations_plot import activations
from vitexport.report.plotting import GRID, INK, MUTED, SERIES, Figure, draw, legend_above

__all__ = ["build_figures"]

Document = Mapping[str, Any]

_LINEAR = frozenset({"qkv", "proj", "fc1", "fc2", "other"})


def build_figures(document: Document) -> tuple[Figure, ...]:
    """Draw every plot the document has data for."""
    found = [*_latency(document), *_blocks(document), *_layers(document), *_ranges(document), *activations(document)]
    return tuple(figure for figure in found if figure is not None)


def _color(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _latency(document: Document) -> list[Figure]:
    """Draw one strip plot per batch size: every sampled run a dot, the median a bar."""
    variants = document["variants"]
    sizes = sorted({entry["batch"] for variant in variants for entry in variant["latency"] if entry["sample_ms"]})
    return [_latency_at(variants, size, several=len(sizes) > 1) for size in sizes]


def _latency_at(variants: Sequence[Mapping[str, Any]], size: int, *, several: bool) -> Figure:
    rows = [
        (index, variant["name"], entry)
        for index, variant in enumerate(variants)
        for entry in variant["latency"]
        if entry["batch"] == size and entry["sample_ms"]
    ]
    spoken = "; ".join(f"{name} {e['p50_ms']:.2f} ms (p99 {e['p99_ms']:.2f})" for _, name, e in rows)
    title = f"Latency at batch {size}"
    key = f"latency-{size}"
    height = 0.75 + 0.42 * len(rows)
    random = np.random.default_rng(0)
    # A few stalls of the machine must not squeeze everything else into a corner.
    usual = max(float(np.percentile(entry["sample_ms"], 98)) for _, _, entry in rows)
    limit = 1.08 * min(usual, 2 * max(entry["p50_ms"] for _, _, entry in rows))
    hidden = 0
    with draw(key, f"{title}. Median: {spoken}.", height=height) as picture:
        axes = picture.axes
        for row, (index, _, entry) in enumerate(rows):
            sample = np.array(entry["sample_ms"])
            hidden += int((sample > limit).sum())
            seen = sample[sample <= limit]
            spread = random.uniform(-0.24, 0.24, len(seen))
            axes.scatter(seen, row + spread, s=6, color=_color(index), alpha=0.35, linewidths=0)
            axes.plot([entry["p50_ms"]] * 2, [row - 0.36, row + 0.36], color=_color(index), linewidth=2.4)
            axes.annotate(
                f"{entry['p50_ms']:.2f}",
                (entry["p50_ms"], row - 0.36),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=INK,
            )
        axes.set_yticks(range(len(rows)), [name for _, name, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(rows) - 0.5, -0.62)
        medians = [entry["p50_ms"] for _, _, entry in rows]
        if max(medians) > 12 * min(medians):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        else:
            axes.set_xlim(0, limit)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("milliseconds per run")
    runs = rows[0][2]["runs"]
    summary = f"{runs} runs of each, interleaved on one machine; the bar is the median."
    if hidden:
        summary += f" {hidden} slower {'run lies' if hidden == 1 else 'runs lie'} outside the plot."
    return Figure(key, title if several else "Latency", summary, picture.svg)


def _blocks(document: Document) -> list[Figure]:
    """Draw the relative error after every block, one line per variant."""
    # A variant without any error has no place on a logarithmic axis.
    variants = {
        name: data["blocks"]
        for name, data in document["errors"].items()
        if any(block["accumulated"] for block in data.get("blocks", []))
    }
    if not variants:
        return []
    order = [variant["name"] for variant in document["variants"]]
    last = list(variants.values())[-1]
    worst = max(last, key=lambda block: block["local"] or 0.0)
    title = "Error after every block"
    with draw("blocks", f"{title}, relative to the float model, by variant.") as picture:
        axes = picture.axes
        for name, blocks in variants.items():
            index = order.index(name) if name in order else len(order)
            values = [max(block["accumulated"] or math.nan, 1e-9) for block in blocks]
            axes.plot(range(len(blocks)), values, color=_color(index), marker="o", markersize=3, label=name)
        axes.set_yscale("log")
        _label_blocks(axes, [block["name"] for block in last])
        axes.set_ylabel("relative RMS error")
        legend_above(axes)
    found = [
        Figure(
            "blocks",
            title,
            "How far the hidden state has drifted after each block, on the replay images.",
            picture.svg,
        )
    ]
    title = "Error each block adds"
    name = list(variants)[-1]
    index = order.index(name) if name in order else len(order)
    with draw("entry", f"{title}: {name}. Largest: {worst['name']}.") as picture:
        axes = picture.axes
        axes.bar(range(len(last)), [block["local"] or 0.0 for block in last], color=_color(index), width=0.68)
        _label_blocks(axes, [block["name"] for block in last])
        axes.set_ylabel("relative RMS error")
        axes.grid(visible=False, axis="x")
    summary = f"What each block of {name} adds when it is fed the float model's exact input; most: {worst['name']}."
    return [*found, Figure("entry", title, summary, picture.svg)]


def _label_blocks(axes: Any, names: Sequence[str]) -> None:
    """Label the x axis with block numbers, thinned out so that they never touch."""
    step = max(1, math.ceil(len(names) / 14))
    short = [name.rsplit(".", 1)[-1] for name in names]
    axes.set_xticks(range(0, len(names), step), short[::step])
    axes.set_xlabel("block")


def _layers(document: Document) -> list[Figure]:
    """Draw the signal-to-noise ratio of every layer of the last variant that was examined."""
    examined = [(name, data["layers"]) for name, data in document["errors"].items() if data.get("layers")]
    if not examined:
        return []
    name, layers = examined[-1]
    groups: dict[str, list[tuple[str, float]]] = {}
    for layer in layers:
        if layer["sqnr_db"] is not None and layer["role"] in _LINEAR:
            groups.setdefault(_kind(layer["layer"]), []).append((layer["layer"], layer["sqnr_db"]))
    repeated = {kind: entries for kind, entries in groups.items() if len(entries) > 1}
    if not repeated:
        return []
    weakest = min((entry for entries in repeated.values() for entry in entries), key=lambda entry: entry[1])
    title = f"Signal to noise of every layer of {name}"
    with draw("layers", f"{title}. Lowest: {weakest[0]} with {weakest[1]:.1f} dB.", height=3.0) as picture:
        axes = picture.axes
        for index, (kind, entries) in enumerate(repeated.items()):
            values = [value for _, value in entries]
            axes.plot(range(len(values)), values, color=_color(index), marker="o", markersize=3, label=kind)
        _label_blocks(axes, [str(index) for index in range(max(map(len, repeated.values())))])
        axes.set_ylabel("dB")
        legend_above(axes)
    summary = (
        f"SQNR of each layer's output given exact inputs; higher is better. Lowest: {weakest[0]}, {weakest[1]:.1f} dB."
    )
    return [Figure("layers", title, summary, picture.svg)]


def _kind(layer: str) -> str:
    """Return what a layer's name says without its block, e.g. ``mlp.fc2``."""
    parts = layer.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbered[-1] + 1 :]) if numbered else layer


def _ranges(document: Document) -> list[Figure]:
    """Draw what activations reach and what the quantized model can represent, for every quantized tensor."""
    rows = [row for data in document["errors"].values() for row in data.get("ranges", [])]
    if not rows:
        return []
    title = "Activation ranges"
    worst = max(rows, key=lambda row: row["clipped"])
    label = f"{title} of {len(rows)} quantized tensors against what they can represent."
    with draw("ranges", label, height=3.0) as picture:
        axes = picture.axes
        place = np.arange(len(rows))
        low, high = (np.array([row[key] for row in rows]) for key in ("low", "high"))
        axes.bar(place, high - low, bottom=low, width=0.9, color=GRID, linewidth=0, label="representable")
        seen = [[row[key] for row in rows] for key in ("min", "max")]
        axes.vlines(place, seen[0], seen[1], color=SERIES[3], linewidth=2.0, label="seen")
        axes.set_yscale("symlog", linthresh=max(1.0, float(np.median(high)) / 4))
        axes.set_xticks([])
        axes.set_xlabel("quantized inputs, from the first block to the last", color=MUTED)
        axes.yaxis.set_major_formatter("{x:g}")
        legend_above(axes)
    clipped = (
        f"most clipped: {worst['layer'] or worst['tensor']}, {worst['clipped']:.2%} of its values."
        if worst["clipped"]
        else "nothing is clipped."
    )
    summary = f"What the replay images reach, over what can be represented, for {len(rows)} tensors; {clipped}"
    return [Figure("ranges", title, summary, picture.svg)]
