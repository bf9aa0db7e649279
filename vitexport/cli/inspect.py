"""``vitexport inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from vitexport.bundle.bundle import Bundle
from vitexport.bundle.metadata import ModelSpec
from vitexport.bundle.target import Target, resolve_target
from vitexport.cli.screen import OUT, print_json
from vitexport.errors import BundleError
from vitexport.files import write_atomic
from vitexport.verification.summary import budget_sentence

__all__ = ["inspect"]


@click.command()
@click.argument("target", metavar="FILE|BUNDLE", type=click.Path(path_type=Path))
@click.option("--ranges", is_flag=True, help="Show a bundle's activation ranges, worst layer first.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write an engine's audit as a page.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(target: Path, ranges: bool, html: Path | None, as_json: bool) -> None:
    """Show what an ONNX file, a bundle or an engine holds: identity, inputs, outputs, preprocessing, operators.

    Example: vitexport inspect out/quickstart/models/int8.onnx
    """
    resolved = resolve_target(target)
    is_engine = target.suffix in (".engine", ".plan")
    if html is not None and not is_engine:
        raise BundleError(f"Expected an engine to audit, found '{target}'.", "--html shows the audit of an engine.")
    if ranges:
        content = _ranges(resolved)
    elif is_engine:
        content = _engine(target, html)
    else:
        content = _onnx(target) if resolved.bundle is None else _bundle(resolved.bundle)
    if as_json:
        print_json(content)
        return
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            OUT.print(_table(key, value))
        elif isinstance(value, dict):
            OUT.print(_table(key, [{"name": name, "value": item} for name, item in value.items()]))
        else:
            OUT.print(f"[bold]{key}[/]: {escape(str(value))}", soft_wrap=True, highlight=False)


def _identity(model: ModelSpec) -> str:
    return f"{model.id} ({model.family}, {model.task}, {model.revision[:19]})"


def _bundle(bundle: Bundle) -> dict[str, Any]:
    return {
        "bundle": str(bundle.root),
        "name": bundle.name,
        "model": _identity(bundle.model),
        "inputs": [spec.describe() for spec in bundle.model.inputs],
        "outputs": [spec.describe() for spec in bundle.model.outputs],
        "class_names": len(bundle.class_names),
        "preprocess": bundle.preprocess.model_dump(mode="json"),
        "artifacts": [
            {
                "name": artifact.name,
                "file": artifact.file.path,
                "MB": round(artifact.total_bytes / 1e6, 3),
                "precision": artifact.precision,
                "seconds": artifact.provenance.seconds,
                "sha256": artifact.file.sha256[:16],
            }
            for artifact in bundle.artifacts
        ],
    }


def _ranges(target: Target) -> dict[str, Any]:
    """Return what the quantizer recorded of every activation range."""
    if target.bundle is None:
        raise BundleError(f"Expected a bundle, found the file '{target.path}'.", "Ranges are recorded in bundles only.")
    recorded = {a.name: a.details for a in target.bundle.artifacts if a.details.get("ranges")}
    if not recorded:
        raise BundleError(f"Expected a quantized model in '{target.path}', found none.", "Run a recipe that quantizes.")
    content: dict[str, Any] = {}
    for name, details in recorded.items():
        content[f"{name}: activation ranges"] = [_range(entry) for entry in details["ranges"]]
        mixed = details.get("mixed_precision")
        if mixed is not None:
            content[f"{name}: what each group costs"] = [
                {"group": group, "alone, dB": f"{cost:.1f}", "kept float": mixed["reasons"].get(group, "")}
                for group, cost in mixed["cost_db"].items()
            ] or "the budget holds with everything quantized"
            content[f"{name}: budget"] = budget_sentence(mixed)
    return content


def _range(entry: dict[str, Any]) -> dict[str, Any]:
    low, high = entry["seen"]
    return {
        "layers": ", ".join(entry["layers"]) + (" (kept float)" if entry["kept_float"] else ""),
        "seen": f"{low:.3g} to {high:.3g}",
        "scale": f"{entry['scale']:.3g}",
        "zero point": entry["zero_point"],
        "layer SQNR dB": f"{entry['layer_sqnr_db']:.1f}",
        "outlier channels (times the median)": ", ".join(
            f"{channel['channel']} ({channel['times_median']:g}x)" for channel in entry["outliers"]
        ),
    }


def _onnx(path: Path) -> dict[str, Any]:
    from vitexport.host.inspection import inspect_onnx

    found = inspect_onnx(path)
    content: dict[str, Any] = {
        "file": str(path),
        "MB": round(found.bytes / 1e6, 3),
        "opset": found.opset,
        "inputs": [spec.describe() for spec in found.inputs],
        "outputs": [spec.describe() for spec in found.outputs],
        "parameters": found.parameters,
        "nodes": sum(found.operators.values()),
        "operators": dict(found.operators),
    }
    if found.metadata is not None:
        metadata = found.metadata
        content |= {
            "model": _identity(metadata.model),
            "class_names": len(metadata.class_names),
            "preprocess": metadata.preprocess.model_dump(mode="json"),
            "history": [dict(entry) for entry in metadata.history],
        }
    return content


def _engine(path: Path, html: Path | None) -> dict[str, Any]:
    from vitexport.report.engine_audit import render_html
    from vitexport.runtimes.tensorrt.audit import engine_facts

    facts = engine_facts(path)
    if html is not None:
        write_atomic(html, render_html(facts))
        click.echo(f"wrote {html}", err=True)
    audit = facts.audit.to_dict() if facts.audit is not None else f"not made: {facts.why_no_audit}"
    return {"engine": str(path), "MB": round(path.stat().st_size / 1e6, 3), **facts.summary, "audit": audit}


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(row.get(column, ""))) for column in columns))
    return table
