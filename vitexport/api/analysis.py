"""What is wrong with a graph, or will be: lint, diagnose, bisect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitexport.api.arguments import require_positive
from vitexport.bundle.bundle import Bundle
from vitexport.bundle.layout import read_replay_inputs
from vitexport.bundle.target import resolve_target
from vitexport.errors import ImageError
from vitexport.extras import names_missing_extras
from vitexport.files import as_path, finite
from vitexport.inputs.images import batches, list_images
from vitexport.runtimes import open_runtime
from vitexport.tables import Table, Tabular
from vitexport.tensors import Array
from vitexport.verification.select import Choice, choose_model

if TYPE_CHECKING:
    from vitexport.host.diagnose import Advice, Anatomy, BisectReport
    from vitexport.host.lint import Finding

__all__ = ["Diagnosis", "LintResult", "bisect", "diagnose", "lint"]


@dataclass(frozen=True, repr=False)
class LintResult(Tabular):
    """What a linter found.

    Attributes:
        model: The file.
        target: What it was held against, in words.
        findings: Errors first, otherwise in graph order.
        choice: Which variant of a bundle the file is, and why not a later one.
    """

    model: Path
    target: str
    findings: tuple[Finding, ...]
    choice: Choice

    @property
    def passed(self) -> bool:
        """Whether nothing will fail; warnings are about speed and accuracy."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        model = {"path": str(self.model), **self.choice.to_dict()}
        findings = [asdict(item) for item in self.findings]
        return {"passed": self.passed, "model": model, "target": self.target, "findings": findings}

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
        return (Table(f"{self.choice.title} for {self.target}", columns, tuple(rows), text=columns),)


@names_missing_extras("Checking a graph")
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
        model: ONNX file, or a bundle directory, which stands for the last ONNX file that its checks accept.
        product: ``tensorrt`` (the oldest, 10.3), ``tensorrt:10.3``, ``tensorrt:11``, ``tensorrt-rtx`` or
            ``onnxruntime``.
        device: Device profile, e.g. ``orin-nano``: also checks its precisions.
        shapes: Names of inputs whose dynamic axes will be given a range.
        variant: Which model of a bundle, whatever its checks found.

    Raises:
        RecipeError: No such product or device.
        BundleError: The file is no ONNX model, or the bundle has none that its checks accept.
        MissingDependencyError: onnx is not installed.
    """
    from vitexport.device.profiles import device_profile
    from vitexport.host.lint import lint_model, parse_target

    profile = None if device is None else device_profile(device)
    choice = choose_model(resolve_target(model), variant, onnx=True)
    wanted = parse_target(product, device=profile, shapes_given=tuple(shapes))
    return LintResult(choice.path, wanted.title, lint_model(choice.path, wanted), choice)


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


@names_missing_extras("Diagnosing a model")
def diagnose(target: str | PathLike[str], images: str | PathLike[str] | None = None, *, limit: int = 16) -> Diagnosis:
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


@names_missing_extras("Comparing layers")
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
