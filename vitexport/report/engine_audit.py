"""An engine's facts and audit as one self-contained HTML page. No template engine: a device has none."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vitexport.runtimes.tensorrt.audit import AuditReport, EngineFacts

__all__ = ["render_html"]

_STYLE = """
:root { color-scheme: light dark; }
body { background: #fff; color: #1c1f23; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; }
code { font-size: 13px; }
.scroll { overflow-x: auto; } .scroll table { min-width: 56rem; }
.passed { color: #16703a; } .failed { color: #b02020; } .bad { background: #fbe9e7; }
@media (prefers-color-scheme: dark) {
  body { background: #14171a; color: #e8e9e6; } .bad { background: #40201f; }
  .passed { color: #7fd6a6; } .failed { color: #ff9c92; }
}
.bar { display: flex; height: 1.4rem; border-radius: .3rem; overflow: hidden; }
.bar span { color: #fff; font-size: 12px; padding: 0 .4rem; white-space: nowrap; overflow: hidden; }
"""

_COLOURS = {
    "int8": "#16803c",
    "fp8": "#0f766e",
    "float16": "#1d4ed8",
    "bfloat16": "#4338ca",
    "float32": "#a16207",
    "unknown": "#6b7280",
}


def render_html(facts: EngineFacts) -> str:
    """Return the page."""
    title = f"Engine {escape(facts.path.name)}"
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.summary.items())
    body = f"<h1>{title}</h1><table>{rows}</table>"
    if facts.audit is None:
        body += f"<h2>Audit</h2><p>Not run on this machine: {escape(facts.why_no_audit)}</p>"
        if facts.sidecar is not None:
            body += "<h3>Requested</h3>" + _bar(_requested(facts))
    else:
        body += _audit(facts.audit)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>"
        f"<style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _audit(report: AuditReport) -> str:
    verdict = "passed" if report.passed else "failed"
    facts = (
        f"{report.kept_fraction:.1%} of the arithmetic runs as the ONNX file requested (required: "
        f"{report.min_fraction:.0%}). "
        f"Fused attention: {report.fused_attention} of {report.attention_blocks} blocks. "
        f"{report.reformats} reformat and {report.copies} copy layers of {report.layers}."
    )
    rows = "".join(
        f"<tr{'' if gemm.executed == gemm.requested else ' class=bad'}><td><code>{escape(gemm.name)}</code></td>"
        f"<td>{escape(gemm.kind)}</td><td>{escape(gemm.requested)}</td><td>{escape(gemm.executed)}</td>"
        f'<td class="number">{gemm.flops / 1e6:.1f}</td><td><code>{escape(gemm.layer)}</code></td>'
        f"<td><code>{escape(gemm.tactic)}</code></td></tr>"
        for gemm in report.gemms
    )
    return (
        f'<h2>Audit: <span class="{verdict}">{verdict}</span></h2><p>{escape(facts)}</p>'
        f"<h3>Requested</h3>{_bar(sorted(report.requested_fraction.items()))}"
        f"<h3>Executed</h3>{_bar(sorted(report.executed_fraction.items()))}"
        '<h3 id="gemms">GEMMs</h3>'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="gemms">'
        "<table><tr><th>ONNX node</th><th>kind</th><th>requested</th><th>executed</th><th>MFLOP</th>"
        f"<th>engine layer</th><th>kernel</th></tr>{rows}</table></div>"
    )


def _requested(facts: EngineFacts) -> list[tuple[str, float]]:
    fractions: dict[str, float] = {}
    requested = () if facts.sidecar is None else facts.sidecar.requested
    total = sum(gemm.flops for gemm in requested) or 1
    for gemm in requested:
        fractions[gemm.precision] = fractions.get(gemm.precision, 0.0) + gemm.flops / total
    return sorted(fractions.items())


def _bar(fractions: Sequence[tuple[str, float]]) -> str:
    parts = "".join(
        f'<span style="width:{fraction:.2%};background:{_COLOURS.get(name, "#52525b")}" '
        f'title="{escape(name)} {fraction:.1%}">{escape(name)} {fraction:.1%}</span>'
        for name, fraction in fractions
    )
    return f'<div class="bar">{parts}</div>'
