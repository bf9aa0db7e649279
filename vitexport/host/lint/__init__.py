"""Find what an inference compiler will reject, or accept and run slowly, without having that compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from vitexport.host.lint import rules_attention, rules_device, rules_model, rules_quantization
from vitexport.host.lint.findings import Finding, LintTarget, Severity, parse_target
from vitexport.host.lint.graph import LintGraph, load_graph

__all__ = ["RULES", "Finding", "LintTarget", "lint_model", "parse_target"]

Rule = Callable[[LintGraph, LintTarget], Iterator[Finding]]

# One function per rule, run in this order; the finding says which name it goes by.
RULES: tuple[Rule, ...] = (
    rules_model.operators,
    rules_model.opset,
    rules_model.external_weights,
    rules_model.weights_size,
    rules_model.dynamic_axes,
    rules_model.float64,
    rules_quantization.int32_bias,
    rules_quantization.zero_points,
    rules_quantization.scales,
    rules_quantization.uint8,
    rules_quantization.weight_axis,
    rules_quantization.cast_after_dequantize,
    rules_quantization.orphans,
    rules_attention.attention_guards,
    rules_attention.attention_size,
    rules_attention.attention_quantization,
    rules_attention.attention_rows,
    rules_attention.attention_operator,
    rules_device.device_precision,
    rules_device.turing_float32,
)


def lint_model(model: Path, target: LintTarget) -> tuple[Finding, ...]:
    """Run every rule over an ONNX file.

    Args:
        model: ONNX file.
        target: What it is meant for.

    Returns:
        Findings, errors first, then warnings, otherwise in graph order.

    Raises:
        BundleError: The file is missing, truncated or no ONNX model.
    """
    graph = load_graph(model)
    findings = [finding for rule in RULES for finding in rule(graph, target)]
    return tuple(sorted(findings, key=lambda finding: get_args(Severity).index(finding.severity)))
