"""``vitexport build-engine``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vitexport.cli.engine_options import engine_options, engine_settings, resolve_model
from vitexport.cli.lint import findings_table
from vitexport.cli.screen import OUT, print_json

if TYPE_CHECKING:
    from rich.progress import TaskID

    from vitexport.engine.progress import BuildProgress
    from vitexport.recipe.settings import EngineSettings
    from vitexport.runtimes.tensorrt.audit import AuditReport

__all__ = ["build_engine"]

_ERR = Console(stderr=True)
if not _ERR.is_terminal:
    _ERR = Console(stderr=True, width=120)  # a pipe or file has no width to fit


@click.command("build-engine")
@click.argument("source", metavar="MODEL.onnx|BUNDLE", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Engine to write.")
@engine_options
@click.option("--lint/--no-lint", "with_lint", default=True, help="Lint first, and stop if anything will fail.")
@click.option("--audit/--no-audit", "with_audit", default=True, help="Audit the engine where it can be loaded.")
@click.option("--min-fraction", type=click.FloatRange(0, 1), default=0.99, help="Fraction that must run as requested.")
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def build_engine(
    source: Path,
    output: Path,
    variant: str | None,
    with_lint: bool,
    with_audit: bool,
    min_fraction: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Build a TensorRT engine from an ONNX file and audit what it does. Exits 3 if lint or audit fails.

    Example: vitexport build-engine out/vit -o vit.engine --batch 1,8
    """
    from vitexport.engine.build import build_engine as build

    ctx = click.get_current_context()
    model, recipe = resolve_model(source, variant)
    settings = engine_settings(recipe, options)
    if with_lint and not _lint(model, settings):
        ctx.exit(3)
    with _progress() as progress:
        result = build(model, settings, output, progress=progress)
    report, why = _audit(output, min_fraction) if with_audit else (None, "not asked for")
    if as_json:
        audited = None if report is None else report.to_dict()
        print_json(
            {
                "path": str(result.path),
                "precision": result.precision,
                "details": dict(result.details),
                "audit": audited,
                "why_no_audit": why,
            }
        )
    else:
        _show(output, result.precision, result.details, report, why)
    ctx.exit(0 if report is None or report.passed else 3)


def _lint(model: Path, settings: EngineSettings) -> bool:
    """Lint where onnx is installed; a device has no onnx, and there TensorRT's own parser is the check."""
    if importlib.util.find_spec("onnx") is None:
        _ERR.print("lint: not run (the onnx package is not installed here); TensorRT's parser checks the model")
        return True
    from vitexport.device.profiles import device_profile
    from vitexport.host.lint import lint_model, parse_target

    device = None if settings.device is None else device_profile(settings.device)
    target = parse_target(_lint_target(settings), device=device, shapes_given=tuple(settings.shapes))
    findings = lint_model(model, target)
    if findings:
        _ERR.print(findings_table([asdict(item) for item in findings], f"lint for {target.title}"))
    return not any(finding.severity == "error" for finding in findings)


def _lint_target(settings: EngineSettings) -> str:
    if settings.product == "tensorrt-rtx":
        return "tensorrt:rtx"
    from vitexport.runtimes.tensorrt.api import load_api

    return f"tensorrt:{load_api('tensorrt').version}"


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


def _show(engine: Path, precision: str, details: Any, report: AuditReport | None, why: str) -> None:
    OUT.print(
        f"wrote {escape(str(engine))} ({details['bytes'] / 2**20:.1f} MiB, {precision}, {details['seconds']:.1f} s, "
        f"{details['product']} {details['version']})",
        soft_wrap=True,
        highlight=False,
    )
    total = sum(details["requested_flops"].values()) or 1
    requested = ", ".join(f"{name} {work / total:.1%}" for name, work in sorted(details["requested_flops"].items()))
    OUT.print(f"requested: {requested} of the arithmetic", highlight=False)
    if report is None:
        OUT.print(f"audit: not run, {escape(why)}", soft_wrap=True, highlight=False)
        return
    executed = ", ".join(f"{name} {fraction:.1%}" for name, fraction in sorted(report.executed_fraction.items()))
    verdict = "[green]ok[/]" if report.passed else "[red]FAILED[/]"
    OUT.print(
        f"audit: {verdict} runs {executed}; fused attention {report.fused_attention} of {report.attention_blocks}; "
        f"{report.reformats} reformats, {report.copies} copies in {report.layers} layers",
        soft_wrap=True,
        highlight=False,
    )
    for gemm in (*report.fell_back, *report.unknown)[:10]:
        OUT.print(f"  {escape(gemm.name)}: requested {gemm.requested}, runs in {gemm.executed}", highlight=False)


@contextmanager
def _progress() -> Iterator[BuildProgress | None]:
    """Show TensorRT's phases while they run; nothing where there is no terminal."""
    if not _ERR.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_ERR, transient=True) as bars:
        yield _Bars(bars)


class _Bars:
    """One bar per phase that is open; nested phases are indented."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._open: dict[str, TaskID] = {}
        self._depth: dict[str, int] = {}

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self._depth[phase] = 0 if parent is None else self._depth.get(parent, 0) + 1
        self._open[phase] = self._bars.add_task("  " * self._depth[phase] + escape(phase), total=max(1, steps))

    def step(self, phase: str, step: int) -> bool:
        if phase in self._open:
            self._bars.update(self._open[phase], completed=step + 1)
        return True

    def finish(self, phase: str) -> None:
        task = self._open.pop(phase, None)
        if task is not None:
            self._bars.remove_task(task)
