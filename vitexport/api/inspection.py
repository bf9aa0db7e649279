"""What a file or bundle holds: identity, inputs, outputs, preprocessing, operators, ranges, kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitexport.bundle.bundle import Bundle
from vitexport.bundle.target import Target, resolve_target
from vitexport.errors import BundleError
from vitexport.extras import names_missing_extras
from vitexport.files import as_path, write_atomic
from vitexport.tables import Table, Tabular
from vitexport.verification.quantized import told

if TYPE_CHECKING:
    from vitexport.bundle.metadata import ModelSpec
    from vitexport.runtimes.tensorrt.audit import EngineFacts

__all__ = ["Inspection", "inspect"]


@dataclass(frozen=True, repr=False)
class Inspection(Tabular):
    """What a file or bundle holds.

    Attributes:
        path: The file or bundle directory.
        content: Facts by name: plain values, lists of texts, mappings, and tables as lists of mappings.
        engine: Sidecar and audit of an engine; None for anything else.
    """

    path: Path
    content: Mapping[str, Any]
    engine: EngineFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return dict(self.content)

    def tables(self) -> tuple[Table, ...]:
        """Return the plain facts, then each fact that is a table of its own."""
        tables = {key: rows for key, value in self.content.items() if (rows := _rows(value))}
        facts = tuple((key, _text(value)) for key, value in self.content.items() if key not in tables)
        plain = (Table("", ("fact", "value"), facts, text=("value",)),) if facts else ()
        return (*plain, *(_table(key, rows) for key, rows in tables.items()))

    def write_html(self, out: str | PathLike[str]) -> Path:
        """Write an engine's facts and audit as one self-contained page, and return its path.

        Args:
            out: The HTML file.

        Raises:
            BundleError: This is no engine.
        """
        from vitexport.report.engine_audit import render_html

        if self.engine is None:
            raise BundleError(
                f"Expected an engine to audit, found '{self.path}'.", "--html shows the audit of an engine."
            )
        write_atomic(Path(out), render_html(self.engine))
        return Path(out)


@names_missing_extras("Inspecting an ONNX file")
def inspect(target: str | PathLike[str], *, ranges: bool = False) -> Inspection:
    """Say what an ONNX file, a bundle or an engine holds: identity, inputs, outputs, preprocessing, operators.

    An engine is audited kernel by kernel where it can be loaded; elsewhere its sidecar is shown.

    Example::

        print(vx.inspect("out/quickstart"))
        print(vx.inspect("out/quickstart/models/int8.onnx").content["operators"])
        print(vx.inspect("out/quickstart", ranges=True))

    Args:
        target: ONNX file, engine or bundle directory, or an opened bundle.
        ranges: Show a bundle's activation ranges instead, worst layer first.

    Raises:
        BundleError: There is no model, it is damaged, or ``ranges`` are asked of what has none.
        RuntimeBackendError: An engine's sidecar is damaged or belongs to another engine.
        MissingDependencyError: onnx is not installed.
    """
    path = as_path(target, "a model or bundle")
    resolved = resolve_target(path)
    if ranges:
        return Inspection(path, _ranges(resolved))
    if resolved.bundle is not None:
        return Inspection(path, _bundle(resolved.bundle))
    if path.suffix in (".engine", ".plan"):
        return _engine(path)
    return Inspection(path, _onnx(path))


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
        content |= {f"{name}: {about.replace('_', ' ')}": sentence for about, sentence in told(details).items()}
    return content


def _range(entry: dict[str, Any]) -> dict[str, Any]:
    low, high = entry["seen"]
    transformed = () if entry["kept_float"] else entry.get("transformed", ())
    return {
        "layers": ", ".join(entry["layers"]) + (" (kept float)" if entry["kept_float"] else ""),
        "seen": f"{low:.3g} to {high:.3g}",
        "as quantized": " to ".join(f"{end:.3g}" for end in transformed),
        "rotated by": "" if entry["kept_float"] else entry.get("rotation") or "",
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
        "weights": [f"{count:,} {dtype}" for dtype, count in found.weights.items()],
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


def _engine(path: Path) -> Inspection:
    from vitexport.runtimes.tensorrt.audit import engine_facts

    facts = engine_facts(path)
    audit = facts.audit.to_dict() if facts.audit is not None else f"not made: {facts.why_no_audit}"
    size = round(path.stat().st_size / 1e6, 3)
    return Inspection(path, {"engine": str(path), "MB": size, **facts.summary, "audit": audit}, facts)


def _rows(value: object) -> list[dict[str, Any]]:
    """Return the rows of a fact that is a table; none of one that is not."""
    if isinstance(value, dict):
        return [{"name": name, "value": item} for name, item in value.items()]
    return value if isinstance(value, list) and value and isinstance(value[0], dict) else []


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    cells = tuple(tuple(_text(row.get(column, "")) for column in columns) for row in rows)
    return Table(title, columns, cells, text=columns)


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
