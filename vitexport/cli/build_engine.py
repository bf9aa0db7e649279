"""``vitexport build-engine``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape

from vitexport.api import engine as api
from vitexport.api.analysis import LintResult
from vitexport.cli.engine_options import engine_options, given_settings
from vitexport.cli.lint import findings_table
from vitexport.cli.screen import OUT, print_json, say_choice
from vitexport.files import StageResult

if TYPE_CHECKING:
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
@click.option("--min-fraction", type=click.FloatRange(0, 1), help="Share that must run as requested.  [default: 0.99]")
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def build_engine(
    source: Path,
    output: Path,
    variant: str | None,
    with_lint: bool,
    with_audit: bool,
    min_fraction: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Build a TensorRT engine from an ONNX file and audit what it does. Exits 3 if lint or audit fails.

    Example: vitexport build-engine out/vit -o vit.engine --batch 1,8
    """
    found = api.build_engine(
        source,
        output,
        variant=variant,
        check=with_lint,
        audit=with_audit,
        min_fraction=min_fraction,
        progress=_ERR.is_terminal,
        on_choice=say_choice,
        on_lint=_show_lint,
        **given_settings(options),
    )
    if with_lint and found.lint is None:
        _ERR.print("lint: not run (the onnx package is not installed here); TensorRT's parser checks the model")
    if as_json:
        print_json(found.to_dict())
    elif found.built is not None:
        _show(found.built, found.audit, found.why_no_audit)
    click.get_current_context().exit(0 if found.passed else 3)


def _show_lint(found: LintResult) -> None:
    if found.findings:
        _ERR.print(findings_table(found))


def _show(built: StageResult, report: AuditReport | None, why: str) -> None:
    details = built.details
    OUT.print(
        f"wrote {escape(str(built.path))} ({details['bytes'] / 2**20:.1f} MiB, {built.precision}, "
        f"{details['seconds']:.1f} s, "
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
