"""What the recorded inspector answers of ``tests/runtimes/tensorrt/fixtures`` are audits of."""

from __future__ import annotations

import json
from typing import Literal

from tests.support.paths import ROOT
from vitexport.runtimes.tensorrt.audit import AuditReport, audit_layers
from vitexport.runtimes.tensorrt.inspector import parse_layers
from vitexport.runtimes.tensorrt.sidecar import RequestedGemm

__all__ = ["FIXTURES", "engine_information", "fixture_audit", "fixture_gemms"]

FIXTURES = ROOT / "tests" / "runtimes" / "tensorrt" / "fixtures"


def fixture_gemms(precision: Literal["int8", "fp8"]) -> list[RequestedGemm]:
    """The matrix products of the fixtures' ViT (192 wide, 197 tokens, 3 heads, two blocks), per image."""
    found = [RequestedGemm(name="patch/Conv", kind="convolution", precision="float16", flops=57_802_752)]
    for block in range(2):
        prefix = f"blocks.{block}."
        work = {"attn.qkv": 43_573_248, "mlp.fc1": 58_097_664, "mlp.fc2": 58_097_664}
        found += [
            RequestedGemm(name=f"{prefix}{name}/MatMul", kind="weighted", precision=precision, flops=flops)
            for name, flops in work.items()
        ]
        found += [
            RequestedGemm(name=f"{prefix}attn/{name}", kind="attention", precision="float16", flops=14_902_656)
            for name in ("MatMul", "MatMul_1")
        ]
    return [*found, RequestedGemm(name="head/MatMul", kind="weighted", precision="float16", flops=384_000)]


def fixture_audit(name: str, precision: Literal["int8", "fp8"] = "int8") -> AuditReport:
    return audit_layers(parse_layers((FIXTURES / f"{name}.json").read_text()), fixture_gemms(precision))


def engine_information(tactic: str) -> str:
    layer = {"Name": "fc", "LayerType": "gemm", "TacticName": tactic, "Metadata": "[ONNX Layer: fc]", "Inputs": []}
    return json.dumps({"Layers": [layer]})
