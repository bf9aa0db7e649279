"""What is true of a model here: verify, evaluate, bench, inspect, lint, diagnose, bisect."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitexport.api.arguments import require_positive
from vitexport.benchmark.compare import Measured, find_models, time_models, tune
from vitexport.benchmark.latency import load_warning, pin
from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import read_recipe, read_replay_inputs
from vitexport.bundle.target import resolve_target
from vitexport.errors import ImageError, RecipeError, RuntimeBackendError
from vitexport.files import as_path, finite
from vitexport.inputs.images import batches, list_images
from vitexport.machine import describe_machine
from vitexport.runtimes import RuntimeOptions, open_runtime
from vitexport.tables import Table, Tabular, cell
from vitexport.tensors import Array
from vitexport.verification.evaluate import Evaluation, evaluate_models
from vitexport.verification.replay import replay, replay_engine
from vitexport.verification.result import VerificationResult

if TYPE_CHECKING:
    from vitexport.host.diagnose import Advice, Anatomy, BisectReport
    from vitexport.host.lint import Finding

__all__ = ["BenchResult", "Diagnosis", "LintResult", "bench", "bisect", "diagnose", "evaluate", "lint", "verify"]


def verify(
    bundle: str | PathLike[str],
    *,
    engine: str | Path | None = None,
    runtime: str | None = None,
) -> VerificationResult:
    """Run a bundle's models on this machine and compare with PyTorch's recorded outputs; needs no PyTorch.

    Example::

        result = vx.verify("out/vit")
        print(result.passed, result.failures())

    Args:
        bundle: Bundle directory, or an opened bundle.
        engine: Check this TensorRT engine, built from a model of the bundle, instead of the models themselves.
        runtime: Open every model with this runtime; None lets each file choose.

    Returns:
        The result; a model that does not match is a result, not an exception.

    Raises:
        BundleError: The bundle is damaged, or holds nothing to compare with.
        RuntimeBackendError: A model does not open here.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    recipe = read_recipe(opened)
    if engine is None:
        return replay(opened, recipe, runtime=runtime)
    return replay_engine(opened, recipe, as_path(engine, "an engine"), runtime=runtime)


def evaluate(
    target: str | PathLike[str],
    images: str | Path,
    *,
    labels: str | Path | None = None,
    limit: int | None = None,
    batch: int = 16,
    runtime: str | None = None,
) -> Evaluation:
    """Measure top-1 and top-5 of a model, or of every variant of a bundle, on labelled images.

    Variants after the first are compared with it image by image (McNemar 1947), so that noise is not taken for a
    difference.

    Example::

        print(vx.evaluate("out/quickstart", "calib/holdout", labels="calib/manifest.json", limit=32))

    Args:
        target: Model file or bundle directory.
        images: Folder of images.
        labels: JSON file with the class of each image; None looks for ``manifest.json``, then for class folders.
        limit: Use at most so many images, spread over the folder.
        batch: Images per run.
        runtime: Runtime name; None takes each file's own.

    Raises:
        ImageError: The images have no labels, or the model gives no class scores.
    """
    require_positive(batch=batch)
    folder = as_path(images, "a folder of images")
    return evaluate_models(
        resolve_target(target),
        folder,
        list_images(folder, limit=limit),
        labels=None if labels is None else as_path(labels, "a labels file"),
        batch=batch,
        runtime=runtime,
    )


@dataclass(frozen=True, repr=False)
class BenchResult(Tabular):
    """What every model took, at every batch size.

    Attributes:
        rows: One per model and batch size; with ``tune``, the best number of threads of each model comes first.
        skipped: Models that take another batch than was asked for.
        machine: Where it was measured.
        threads: Threads every model was given; None where the runtime chose.
        warnings: Why the figures may mean little, e.g. a busy machine.
    """

    rows: tuple[Measured, ...]
    skipped: tuple[str, ...]
    machine: dict[str, str]
    threads: int | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "machine": self.machine,
            "threads": self.threads,
            "warnings": list(self.warnings),
            "skipped": list(self.skipped),
            "results": [row.to_dict() for row in self.rows],
        }

    def draw(self, out: str | Path) -> Path:
        """Draw the result as an SVG picture.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from vitexport.report.comparison_plot import draw_comparison

        draw_comparison(self.rows, Path(out))
        return Path(out)

    def tables(self) -> tuple[Table, ...]:
        """Return one row per model and batch size."""
        tuned = any(row.threads is not None for row in self.rows)
        powered = any(row.power is not None for row in self.rows)
        columns = ("model", *("threads",) * tuned, "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "speed-up")
        columns = (*columns, "memory MB", *("W", "J/image") * powered)
        return (Table("", columns, tuple(_measured_cells(row, tuned, powered) for row in self.rows)),)


def _measured_cells(row: Measured, tuned: bool, powered: bool) -> tuple[str, ...]:
    latency = row.latency
    cells = [row.subject, *[str(row.threads)] * tuned, str(latency.batch)]
    cells += [f"{value:.2f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)]
    cells += [f"{latency.images_per_second:.1f}", f"{row.speedup:.2f}x", cell(row.memory_bytes, ".0f", 1e-6)]
    if powered:
        energy = row.power.joules_per_image(latency.images_per_second) if row.power else None
        cells += [cell(row.power.watts if row.power else None, ".2f"), cell(energy, ".3f")]
    return tuple(cells)


def bench(
    targets: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    runtimes: Sequence[str] = (),
    batch: int | Sequence[int] = (1,),
    seconds: float = 3.0,
    warmup: int = 5,
    threads: int | None = None,
    cpus: Collection[int] | None = None,
    tune_threads: bool = False,
) -> BenchResult:
    """Measure latency, throughput and memory of models by turns, so that their ratio holds on a busy machine.

    A bundle is measured on the images it carries; a single file on one fixed synthetic image. On Jetson the power of
    the module and the energy of an image are measured too.

    Example::

        print(vx.bench(["out/vit", "other.onnx"], batch=(1, 8), seconds=0.1))

    Args:
        targets: Model files and bundle directories; the first model is what the others are compared with.
        runtimes: Names; empty takes each file's own, several are compared.
        batch: Images per run, one measurement each.
        seconds: Measured time per model and batch size, in seconds.
        warmup: Runs before measuring.
        threads: Runtime threads; None lets the runtime choose, or takes one for each of ``cpus``.
        cpus: Keep this process, from now on, on these cores.
        tune_threads: Find the best number of threads of each model instead.

    Raises:
        RuntimeBackendError: A model does not open here, or none takes a batch of these sizes.
    """
    if isinstance(targets, Sequence) and not isinstance(targets, str):
        wanted = [as_path(entry, "a model or bundle") for entry in targets]
    else:
        wanted = [as_path(targets, "a model or bundle")]
    sizes = (batch,) if isinstance(batch, int) else tuple(batch)
    require_positive(seconds=seconds, threads=threads, **{f"batch[{i}]": size for i, size in enumerate(sizes)})
    if not sizes:
        raise RecipeError("Expected at least one batch size, found none.", "Pass batch=1, or several as (1, 8).")
    if cpus is not None:
        pin(cpus)
        threads = threads if threads is not None or tune_threads else len(cpus)
    warning = load_warning()
    candidates = [(model, runtime) for model in find_models(wanted) for runtime in runtimes or (None,)]
    options = RuntimeOptions(threads=threads)
    skipped: tuple[str, ...] = ()
    if tune_threads:
        rows = [
            row
            for model, runtime in candidates
            for size in sizes
            for row in tune(model, runtime, options, size, seconds=seconds, warmup=warmup)
        ]
    else:
        rows, skipped = time_models(candidates, options, sizes, seconds=seconds, warmup=warmup)
    if not rows:
        raise RuntimeBackendError(
            f"No model here takes a batch of {' or '.join(map(str, sizes))}.", "Choose the size it was exported for."
        )
    warnings = () if warning is None else (warning,)
    return BenchResult(tuple(rows), skipped, describe_machine(), threads, warnings)


@dataclass(frozen=True, repr=False)
class LintResult(Tabular):
    """What a linter found.

    Attributes:
        model: The file.
        target: What it was held against, in words.
        findings: Errors first, otherwise in graph order.
    """

    model: Path
    target: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing will fail; warnings are about speed and accuracy."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"passed": self.passed, "target": self.target, "findings": [asdict(item) for item in self.findings]}

    def tables(self) -> tuple[Table, ...]:
        """Return the findings; equal ones on many nodes share a row."""
        grouped: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self.findings:
            grouped.setdefault((finding.severity, finding.rule, finding.fix), []).append(finding)
        rows = []
        for (severity, rule, fix), group in grouped.items():
            where = group[0].module or group[0].node or "the model"
            more = f" and {len(group) - 1} more" if len(group) > 1 else ""
            rows.append((severity, rule, f"{where}{more}", group[0].why, fix))
        columns = ("severity", "rule", "where", "why", "fix")
        return (Table(f"{self.model.name} for {self.target}", columns, tuple(rows), text=columns),)


def lint(
    model: str | PathLike[str],
    product: str = "tensorrt",
    *,
    device: str | None = None,
    shapes: Sequence[str] = (),
    variant: str | None = None,
) -> LintResult:
    """Find what an inference compiler will reject, or accept and run slowly, without having that compiler.

    Example::

        print(vx.lint("vit-int8.onnx", product="tensorrt:10.3", device="orin-nano").passed)

    Args:
        model: ONNX file or bundle directory.
        product: ``tensorrt`` (the oldest, 10.3), ``tensorrt:10.3``, ``tensorrt:11``, ``tensorrt-rtx`` or
            ``onnxruntime``.
        device: Device profile, e.g. ``orin-nano``: also checks its precisions.
        shapes: Names of inputs whose dynamic axes will be given a range.
        variant: Which model of a bundle; None takes the last ONNX file.

    Raises:
        RecipeError: No such product or device.
        BundleError: The file is no ONNX model.
        MissingDependencyError: onnx is not installed.
    """
    from vitexport.device.profiles import device_profile
    from vitexport.host.lint import lint_model, parse_target

    profile = None if device is None else device_profile(device)
    path = resolve_target(model).onnx_model(variant).path
    wanted = parse_target(product, device=profile, shapes_given=tuple(shapes))
    return LintResult(path, wanted.title, lint_model(path, wanted))


@dataclass(frozen=True, repr=False)
class Diagnosis(Tabular):
    """What will be hard about a model.

    Attributes:
        anatomy: Magnitudes of its tensors on real images.
        advice: Findings, the most serious first.
        recipe: What to write into the recipe, as YAML; empty for nothing.
    """

    anatomy: Anatomy
    advice: tuple[Advice, ...]
    recipe: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; numbers that are not finite become None."""
        content = {"advice": [asdict(entry) for entry in self.advice], "recipe": self.recipe, **asdict(self.anatomy)}
        cleaned: dict[str, Any] = finite(content)
        return cleaned

    def tables(self) -> tuple[Table, ...]:
        """Return the advice."""
        rows = tuple((entry.level, entry.topic, entry.finding, entry.why) for entry in self.advice)
        columns = ("level", "topic", "finding", "why")
        return (Table(f"on {self.anatomy.images} images", columns, rows, text=columns),)


def diagnose(target: str | PathLike[str], images: str | Path | None = None, *, limit: int = 16) -> Diagnosis:
    """Say what will be hard to quantize or to run in fp16, and what to write into the recipe; needs no GPU.

    Example::

        print(vx.diagnose("vit.onnx", images="calib/calibration"))

    Args:
        target: ONNX file or bundle directory, whose float model is examined.
        images: Folder of real images; a bundle brings its own.
        limit: How many images to use.

    Raises:
        ImageError: A single file was given without images.
    """
    require_positive(limit=limit)
    from vitexport.host.diagnose import advise, measure_anatomy, recipe_of

    model, feeds = _float_model_and_feeds(
        target, None if images is None else as_path(images, "a folder of images"), limit
    )
    anatomy = measure_anatomy(model, feeds)
    advice = advise(anatomy)
    return Diagnosis(anatomy, advice, recipe_of(advice))


def _float_model_and_feeds(target: str | PathLike[str], folder: Path | None, limit: int) -> tuple[Path, list[Array]]:
    resolved = resolve_target(target)
    bundle = resolved.bundle
    model = resolved.float_model().path
    with open_runtime(model) as runtime:
        if bundle is not None and folder is None:
            inputs = read_replay_inputs(bundle)
            rows = range(min(limit, len(inputs.images)))
            return model, [inputs.feed(runtime.inputs[0], bundle.preprocess, slice(row, row + 1)) for row in rows]
        if folder is None:
            raise ImageError(
                "Expected images to run the model on, found none.",
                "Add --images DIR with real images; random input says nothing about a trained model.",
            )
        spec = resolved.metadata(runtime.metadata).preprocess
        return model, list(batches(list_images(folder, limit=limit), spec, runtime.inputs[0], 1))


def bisect(bundle: str | PathLike[str], variant: str, *, against: str | None = None, images: int = 8) -> BisectReport:
    """Find the block and layer where a variant loses accuracy, by feeding every layer exact inputs.

    Example::

        print(vx.bisect("out/quickstart", "int8").describe())

    Args:
        bundle: Bundle directory, or an opened bundle.
        variant: Variant to examine, e.g. ``int8``.
        against: Variant that is right; None takes the last float one before it.
        images: How many of the bundle's images to use, at least 1.

    Raises:
        BundleError: There is no such variant, none before it, or it is no ONNX graph.
    """
    require_positive(images=images)
    from vitexport.host.diagnose.bundle import bisect_variant

    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    return bisect_variant(opened, variant, against=against, images=images)
