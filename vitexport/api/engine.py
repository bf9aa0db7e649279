"""TensorRT engines: build, refit, and the same command for the vendor's tool."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitexport.api.analysis import LintResult, lint
from vitexport.api.progress import OnEvent, Progress, shown
from vitexport.bundle.layout import read_recipe
from vitexport.bundle.target import resolve_target
from vitexport.errors import RecipeError
from vitexport.files import StageResult, StepEvent, as_path
from vitexport.recipe.engine_settings import EngineSettings
from vitexport.recipe.load import validated
from vitexport.tables import Table, Tabular
from vitexport.verification.select import Choice, choose_model

if TYPE_CHECKING:
    from vitexport.runtimes.tensorrt.audit import AuditReport
    from vitexport.runtimes.tensorrt.sidecar import EngineSidecar

__all__ = ["EngineResult", "build_engine", "refit", "trtexec"]

_MIN_FRACTION = 0.99


@dataclass(frozen=True, repr=False)
class EngineResult(Tabular):
    """An engine, and what is known of it.

    Attributes:
        built: The plan with its sidecar; None where the linter found that the build will fail.
        lint: What the linter found; None where onnx is not installed, and TensorRT's own parser was the check.
        audit: What the engine does, kernel by kernel; None where it could not be loaded.
        why_no_audit: Why not.
        choice: The ONNX file: which variant of a bundle, and why not a later one.
    """

    built: StageResult | None
    lint: LintResult | None
    audit: AuditReport | None
    why_no_audit: str
    choice: Choice

    @property
    def passed(self) -> bool:
        """Whether it was built, and does what was requested as far as that was audited."""
        return self.built is not None and (self.audit is None or self.audit.passed)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        built = {"path": None} if self.built is None else self.built.to_dict()
        return {
            "passed": self.passed,
            "model": self.choice.to_dict(),
            **built,
            "lint": None if self.lint is None else self.lint.to_dict(),
            "audit": None if self.audit is None else self.audit.to_dict(),
            "why_no_audit": self.why_no_audit,
        }

    def tables(self) -> tuple[Table, ...]:
        """Return what was built, or why not, and what the audit found."""
        if self.built is None:
            return () if self.lint is None else self.lint.tables()
        facts = {"model": self.choice.title, **{row[0]: row[1] for row in self.built.tables()[0].rows}}
        facts |= {f"note {i}": note for i, note in enumerate(self.choice.notes, 1)}
        if self.audit is None:
            facts["audit"] = f"not run, {self.why_no_audit}"
        else:
            executed = ", ".join(f"{name} {part:.1%}" for name, part in sorted(self.audit.executed_fraction.items()))
            facts["audit"] = f"{'ok' if self.audit.passed else 'FAILED'}: runs {executed}"
        return (Table.of_facts(facts),)


def build_engine(
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    variant: str | None = None,
    check: bool = True,
    audit: bool = True,
    min_fraction: float | None = None,
    progress: Progress = False,
    on_choice: Callable[[Choice], None] | None = None,
    on_lint: Callable[[LintResult], None] | None = None,
    **settings: Any,
) -> EngineResult:
    """Build a TensorRT or TensorRT-RTX engine from an ONNX file, and audit what it does.

    Example::

        vx.build_engine("vit.onnx", "vit.engine", product="tensorrt-rtx", batch=(1,))

    Args:
        model: ONNX file, or a bundle directory, which stands for the last ONNX file that its checks accept.
        out: The engine to write; its sidecar stands beside it.
        variant: Which model of a bundle, whatever its checks found.
        check: Lint first, and do not build what will fail.
        audit: Audit the engine where it can be loaded.
        min_fraction: Fraction of the requested work, 0 to 1, that must run in the precision requested; None takes 0.99.
        progress: True shows a bar; a function gets every event.
        on_choice: Called with the chosen model before anything else.
        on_lint: Called with the linter's result before the build begins.
        **settings: Fields of :class:`~vitexport.recipe.engine_settings.EngineSettings`, over those of the bundle's
            recipe: ``product``, ``device``, ``batch``, ``shapes``, ``workspace_mib``, ...

    Raises:
        RecipeError: A setting does not exist or does not fit, or ``min_fraction`` is given without ``audit``.
        BundleError: The bundle has no such model, or none that its checks accept.
        EngineBuildError: The device cannot run the model, or TensorRT refuses it.
        MissingDependencyError: The product is not installed.
    """
    from vitexport.engine.build import build_engine as build

    if min_fraction is not None and not audit:
        raise RecipeError("Expected no fraction to audit when nothing is audited.", "Leave --min-fraction out.")
    choice, wanted = _model_and_settings(model, variant, settings)
    if on_choice is not None:
        on_choice(choice)
    found = _lint(choice.path, wanted) if check else None
    if found is not None:
        if on_lint is not None:
            on_lint(found)
        if not found.passed:
            return EngineResult(None, found, None, "nothing was built", choice)
    with shown(progress, ("build",)) as show:
        phases = None if progress is False else _Phases(show)
        built = build(choice.path, wanted, as_path(out, "an engine"), variant=choice.variant, progress=phases)
        show(StepEvent("build", "done", str(out)))
    limit = _MIN_FRACTION if min_fraction is None else min_fraction
    report, why = _audit(as_path(out, "an engine"), limit) if audit else (None, "not asked for")
    return EngineResult(built, found, report, why, choice)


def refit(engine: str | PathLike[str], model: str | PathLike[str], out: str | PathLike[str]) -> EngineSidecar:
    """Put the weights of an ONNX file into an engine built with ``strip_weights`` or ``refit``; needs its GPU.

    Example (needs the engine's GPU): ``vx.refit("stripped.engine", "vit.onnx", "vit.engine")``

    Args:
        engine: The plan, with its sidecar.
        model: ONNX file of the same graph.
        out: The engine to write.

    Returns:
        What the new sidecar says.

    Raises:
        EngineBuildError: The engine takes no weights, or others than these.
    """
    from vitexport.engine.refit import refit_engine

    return refit_engine(as_path(engine, "an engine"), as_path(model, "an ONNX file"), as_path(out, "an engine"))


def trtexec(
    model: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    variant: str | None = None,
    on_choice: Callable[[Choice], None] | None = None,
    **settings: Any,
) -> str:
    """Return the trtexec command line that builds the same engine, to check ours with the vendor's tool.

    Example::

        print(vx.trtexec("vit.onnx", "check.engine", batch=(1, 8)))

    Args:
        model: ONNX file, or a bundle directory, which stands for the last ONNX file that its checks accept.
        out: Engine that trtexec should write.
        variant: Which model of a bundle, whatever its checks found.
        on_choice: Called with the chosen model.
        **settings: As for :func:`build_engine`.

    Raises:
        RecipeError: A setting does not exist or does not fit.
        BundleError: The bundle has no such model, or none that its checks accept.
    """
    from vitexport.bundle.metadata import ModelMetadata
    from vitexport.device.profiles import device_profile
    from vitexport.engine.onnx_file import read_metadata
    from vitexport.engine.trtexec import trtexec_command

    choice, wanted = _model_and_settings(model, variant, settings)
    path = choice.path
    if on_choice is not None:
        on_choice(choice)
    metadata = ModelMetadata.from_metadata(read_metadata(path), where=str(path))
    device = None if wanted.device is None else device_profile(wanted.device)
    engine = None if out is None else as_path(out, "an engine")
    return trtexec_command(path, wanted, metadata.model.inputs, engine=engine, device=device)


def _model_and_settings(
    model: str | PathLike[str], variant: str | None, settings: dict[str, Any]
) -> tuple[Choice, EngineSettings]:
    """Return the ONNX file to build, and the settings of the bundle's recipe with the given ones put over them."""
    target = resolve_target(model)
    choice = choose_model(target, variant, onnx=True)
    recipe = None
    if target.bundle is not None and target.bundle.find("recipe") is not None:
        recipe = read_recipe(target.bundle).engine
    start = {} if recipe is None else recipe.model_dump()
    return choice, validated(EngineSettings, {**start, **settings}, where="engine settings")


def _lint(model: Path, settings: EngineSettings) -> LintResult | None:
    """Lint where onnx is installed; a device has no onnx, and there TensorRT's own parser is the check."""
    if importlib.util.find_spec("onnx") is None:
        return None
    product = "tensorrt-rtx"
    if settings.product == "tensorrt":
        from vitexport.runtimes.tensorrt.api import load_api

        product = f"tensorrt:{load_api('tensorrt').version}"
    return lint(model, product, device=settings.device, shapes=tuple(settings.shapes))


def _audit(engine: Path, min_fraction: float) -> tuple[AuditReport | None, str]:
    from vitexport.runtimes.cuda.probe import probe_cuda
    from vitexport.runtimes.tensorrt.audit import audit_engine
    from vitexport.runtimes.tensorrt.sidecar import read_sidecar

    problem = probe_cuda().problem
    sidecar = read_sidecar(engine, check_hash=False)
    if problem:
        return None, f"an audit loads the engine, and there is {problem}"
    if sidecar is not None and sidecar.needs_refit:
        return None, "the weights are left out; `vitexport refit` puts them in"
    return audit_engine(engine, min_fraction=min_fraction), ""


class _Phases:
    """TensorRT's nested phases as events of one stage: the innermost open phase is the message, the outermost fills."""

    def __init__(self, show: OnEvent) -> None:
        self._show = show
        self._open: dict[str, int] = {}
        self._fraction = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self._open[phase] = max(1, steps)
        self._tell(phase)

    def step(self, phase: str, step: int) -> bool:
        if self._open and phase == next(iter(self._open)):
            self._fraction = (step + 1) / self._open[phase]
        self._tell(phase)
        return True

    def finish(self, phase: str) -> None:
        self._open.pop(phase, None)

    def _tell(self, phase: str) -> None:
        self._show(StepEvent("build", "running", phase, min(1.0, self._fraction)))
