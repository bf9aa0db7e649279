"""What a quantizer and its judge are given in :mod:`benchmarks.quantizers`: a float model and photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.install import why_absent
from benchmarks.peers.job import Job
from benchmarks.peers.launch import Outcome, PeerError, run_worker
from benchmarks.suites.quantizer_rows import BASELINE, Model, Row

__all__ = ["Bench", "Images", "prepare"]


@dataclass(frozen=True)
class Images:
    """Photographs that all models share.

    Attributes:
        calibration: What quantizers see.
        evaluation: What judges their files.
        labels: Class index of each of the latter.
    """

    calibration: tuple[Path, ...]
    evaluation: tuple[Path, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Bench:
    """What is quantized and judged, and where files go.

    Attributes:
        model: Float ONNX file.
        calibration: Calibration images.
        evaluation: Images that judge.
        labels: Class index of each of those; None for a model of features.
        work: Folder of the quantized files.
    """

    model: Path
    calibration: tuple[Path, ...]
    evaluation: tuple[Path, ...]
    labels: tuple[int, ...] | None
    work: Path

    def file(self, row: Row) -> Path:
        """Return where a row's quantized model is."""
        return self.work / row.name / "model.onnx"

    def quantize(self, row: Row, out: Path) -> Outcome:
        """Quantize once.

        Raises:
            PeerError: The peer is not installed, or failed.
        """
        python = row.python()
        if python is None:
            raise PeerError(f"{row.peer} {why_absent(row.peer or '')}")
        options = dict(row.options)
        if row.name == BASELINE:
            options["nodes"] = _layers(self.model)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        images = tuple(str(path) for path in self.calibration)
        return run_worker(python, row.worker, Job(str(self.model), images, str(out), options))


def prepare(model: Model, images: Images, work: Path) -> Bench:
    """Export a model into a folder, unless an earlier call did, and return what its rows are measured with."""
    from vitexport.bundle.metadata import ModelMetadata
    from vitexport.host.graph.file import read_onnx

    work.mkdir(parents=True, exist_ok=True)
    path = work / "model.onnx"
    if not path.is_file():
        _export(model.source, path)
    task = ModelMetadata.from_metadata(read_onnx(path).metadata_props, where=str(path)).model.task
    labels = images.labels if task == "classify" else None
    return Bench(path, images.calibration, images.evaluation, labels, work)


def _export(source: str, out: Path) -> None:
    from vitexport.host.export import export_onnx
    from vitexport.host.simplify import simplify_onnx
    from vitexport.host.sources import load_model
    from vitexport.recipe.settings import ExportSettings, ModelSettings, SimplifySettings

    exported = export_onnx(load_model(ModelSettings(source=source)), ExportSettings(), out.with_name("exported.onnx"))
    simplify_onnx(exported.path, SimplifySettings(), out)


def _layers(model: Path) -> Sequence[str]:
    """Return the nodes that this package quantizes by default."""
    from vitexport.host.graph.file import read_onnx
    from vitexport.host.quantize.planning.layers import choose_layers

    return [str(layer.linear.matmul.name) for layer in choose_layers(read_onnx(model), where=str(model))]
