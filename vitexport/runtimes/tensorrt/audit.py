"""What an engine actually does, compared with what its ONNX file requested.

A strongly typed build should compute every GEMM in the type the graph gives it, but kernels are chosen by the builder,
and builders have silently run FP8 as FP32 and split attention apart. So it is read from the engine: per ONNX node, the
kernel that does its work and the type it multiplies in, weighted by the arithmetic (2 * M * N * K).

The inspector's JSON is read in :mod:`vitexport.runtimes.tensorrt.inspector`; an audit becomes a page in
:mod:`vitexport.report.engine_audit`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitexport.errors import MissingDependencyError, RuntimeBackendError
from vitexport.runtimes.cuda.probe import require_gpu
from vitexport.runtimes.tensorrt.api import ProductName, load_api
from vitexport.runtimes.tensorrt.inspector import EngineLayer, parse_layers
from vitexport.runtimes.tensorrt.plan import deserialize, require_compatible
from vitexport.runtimes.tensorrt.sidecar import EngineSidecar, Precision, RequestedGemm, describe, read_sidecar

__all__ = [
    "AuditReport",
    "AuditedGemm",
    "EngineFacts",
    "audit_engine",
    "audit_layers",
    "engine_facts",
    "inspect_layers",
]


@dataclass(frozen=True)
class AuditedGemm:
    """One GEMM (convolutions count as GEMMs): what was requested, what runs.

    Attributes:
        name: ONNX node.
        kind: ``weighted``, ``attention`` or ``convolution``.
        requested: Precision the graph gives it.
        executed: Precision of the kernel; ``unknown`` if no layer of the engine names this node.
        flops: Multiply and add operations at batch 1.
        layer: Engine layer that does it.
        tactic: Its kernel.
    """

    name: str
    kind: str
    requested: Precision
    executed: str
    flops: int
    layer: str
    tactic: str


@dataclass(frozen=True)
class AuditReport:
    """The audit of one engine.

    Attributes:
        gemms: Every GEMM the ONNX file requested.
        requested_fraction: Precision -> fraction of all work requested in it, 0 to 1.
        executed_fraction: Precision, or ``unknown`` -> fraction of all work that runs in it, 0 to 1.
        fused_attention: Attention blocks computed by one kernel.
        attention_blocks: Attention blocks in the model.
        reformats: Layers that only change layout or type.
        copies: Layers that only move data.
        layers: Number of layers.
        min_fraction: Fraction of all work that must run as requested, 0 to 1.
    """

    gemms: tuple[AuditedGemm, ...]
    requested_fraction: Mapping[str, float]
    executed_fraction: Mapping[str, float]
    fused_attention: int
    attention_blocks: int
    reformats: int
    copies: int
    layers: int
    min_fraction: float

    @property
    def fell_back(self) -> tuple[AuditedGemm, ...]:
        """GEMMs that run in another precision than requested."""
        return tuple(gemm for gemm in self.gemms if gemm.executed not in ("unknown", gemm.requested))

    @property
    def unknown(self) -> tuple[AuditedGemm, ...]:
        """GEMMs no layer of the engine accounts for."""
        return tuple(gemm for gemm in self.gemms if gemm.executed == "unknown")

    @property
    def kept_fraction(self) -> float:
        """Fraction of all work that provably runs in the precision requested, 0 to 1."""
        total = sum(gemm.flops for gemm in self.gemms)
        kept = sum(gemm.flops for gemm in self.gemms if gemm.executed == gemm.requested)
        return kept / total if total else 0.0

    @property
    def weighted_fraction(self) -> dict[str, float]:
        """Precision -> fraction of the work with weights that runs in it: all but the two GEMMs of attention."""
        weighted = [gemm for gemm in self.gemms if gemm.kind != "attention"]
        return _fractions((gemm.executed, gemm.flops) for gemm in weighted)

    @property
    def passed(self) -> bool:
        """True if enough of the work runs as requested. What cannot be accounted for has not been shown to."""
        return bool(self.gemms) and self.kept_fraction >= self.min_fraction

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        data = asdict(self)
        data["gemms"] = [asdict(gemm) for gemm in self.gemms]
        return {**data, "kept_fraction": self.kept_fraction, "passed": self.passed}


@dataclass(frozen=True)
class EngineFacts:
    """What can be said about an engine file on this machine.

    Attributes:
        path: The plan.
        sidecar: Its sidecar, or None.
        audit: The audit, or None where the engine cannot be loaded here.
        why_no_audit: Why not.
    """

    path: Path
    sidecar: EngineSidecar | None
    audit: AuditReport | None
    why_no_audit: str

    @property
    def summary(self) -> Mapping[str, str]:
        """Label -> text, for a table."""
        return {} if self.sidecar is None else describe(self.sidecar)


def audit_layers(
    layers: Sequence[EngineLayer], requested: Sequence[RequestedGemm], *, min_fraction: float = 0.99
) -> AuditReport:
    """Compare an engine's layers with what was requested.

    Args:
        layers: Layers of the engine.
        requested: GEMMs of the ONNX graph.
        min_fraction: Fraction of the work that must run as requested, 0 to 1.
    """
    by_node: dict[str, list[EngineLayer]] = {}
    for layer in layers:
        for node in layer.onnx or (layer.name,):
            by_node.setdefault(node, []).append(layer)
    gemms = tuple(_match(gemm, by_node) for gemm in requested)
    return AuditReport(
        gemms=gemms,
        requested_fraction=_fractions((gemm.requested, gemm.flops) for gemm in gemms),
        executed_fraction=_fractions((gemm.executed, gemm.flops) for gemm in gemms),
        fused_attention=sum(layer.is_fused_attention for layer in layers),
        attention_blocks=sum(gemm.kind == "attention" for gemm in requested) // 2,
        reformats=sum(layer.is_reformat for layer in layers),
        copies=sum(layer.is_copy for layer in layers),
        layers=len(layers),
        min_fraction=min_fraction,
    )


def inspect_layers(engine: Path) -> tuple[EngineLayer, ...]:
    """Load an engine on this machine's GPU and return its layers.

    Raises:
        RuntimeBackendError: There is no GPU, or the engine does not run here.
        MissingDependencyError: The product is not installed.
    """
    sidecar = read_sidecar(engine)
    product: ProductName = "tensorrt" if sidecar is None else sidecar.product
    gpu = require_gpu(f"Inspecting '{engine.name}'")
    api = load_api(product)
    require_compatible(engine, sidecar, api, gpu)
    loaded = deserialize(api, engine)
    inspector = loaded.create_engine_inspector()
    try:
        return parse_layers(inspector.get_engine_information(api.module.LayerInformationFormat.JSON))
    finally:
        # The inspector reads from the engine, so it goes first.
        inspector = None
        loaded = None


def audit_engine(engine: Path, *, min_fraction: float = 0.99) -> AuditReport:
    """Audit an engine on this machine's GPU.

    Raises:
        RuntimeBackendError: There is no GPU, the engine does not run here, or it has no sidecar to compare with.
        MissingDependencyError: The product is not installed.
    """
    sidecar = read_sidecar(engine)
    if sidecar is None:
        raise RuntimeBackendError(
            f"'{engine}' has no sidecar, so what its ONNX file requested is unknown.",
            "Build it with `vitexport build-engine`, which writes one.",
        )
    return audit_layers(inspect_layers(engine), sidecar.requested, min_fraction=min_fraction)


def engine_facts(engine: Path) -> EngineFacts:
    """Return what can be said here: the sidecar always, the audit where the engine can be loaded.

    Raises:
        RuntimeBackendError: The sidecar is damaged or belongs to another plan.
    """
    sidecar = read_sidecar(engine)
    try:
        return EngineFacts(engine, sidecar, audit_engine(engine), "")
    except (RuntimeBackendError, MissingDependencyError) as error:
        return EngineFacts(engine, sidecar, None, error.message)


def _fractions(work: Iterable[tuple[str, int]]) -> dict[str, float]:
    """Return precision -> its fraction of all the work; empty without any."""
    flops: Counter[str] = Counter()
    for precision, amount in work:
        flops[precision] += amount
    total = flops.total() or 1
    return {precision: amount / total for precision, amount in flops.items()}


def _match(gemm: RequestedGemm, by_node: Mapping[str, Sequence[EngineLayer]]) -> AuditedGemm:
    """Find the layer that does a GEMM: one naming its node, and of those one that multiplies."""
    layers = by_node.get(gemm.name, ())
    layer = next((item for item in layers if item.is_matrix_product), None)
    if layer is None:
        return AuditedGemm(gemm.name, gemm.kind, gemm.precision, "unknown", gemm.flops, "", "")
    return AuditedGemm(
        gemm.name, gemm.kind, gemm.precision, layer.compute_precision, gemm.flops, layer.name, layer.tactic
    )
