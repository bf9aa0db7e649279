"""Read the engine inspector's JSON, in the form of TensorRT 10 and of TensorRT 11.

Differences (vendor page "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"): the list of names ``Bindings``
became ``I/O Tensors``, a list of objects; and ``Format/Datatype`` became ``Format`` and ``DataType`` (also written
``Datatype``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from vitexport.errors import RuntimeBackendError
from vitexport.runtimes.tensorrt.sidecar import Precision

__all__ = ["EngineLayer", "parse_layers"]

# Data types as the inspector writes them, alone ("Half") or inside a format ("Row major linear FP16 format"), longest
# names first so that BF16 is not taken for F16. TF32 is float32 storage.
_TYPES: tuple[tuple[str, Precision | None], ...] = (
    ("bfloat16", "bfloat16"),
    ("bf16", "bfloat16"),
    ("half", "float16"),
    ("fp16", "float16"),
    ("fp8", "fp8"),
    ("e4m3", "fp8"),
    ("int8", "int8"),
    ("int4", "int4"),
    ("fp4", "fp4"),
    ("float", "float32"),
    ("fp32", "float32"),
    ("int32", None),
    ("int64", None),
    ("bool", None),
    ("uint8", None),
)

# What a kernel multiplies, as its name says. XMMA: <input><output>_<multiplied><accumulated>_<epilogue>, e.g.
# sm80_xmma_gemm_i8f32_i8i32_f32_...; CUTLASS 3: <A>_<B>_<accumulated>, e.g. cutlass3x_sm100_..gemm_f8_f8_f32_f16_f16.
_TYPE = r"(?:bf16|tf32|e4m3|e5m2|f8|f16|f32|i8|i32|s8|s32|u8)"
_XMMA = re.compile(rf"_{_TYPE}{_TYPE}_({_TYPE}){_TYPE}(?:_|$)")
_CUTLASS = re.compile(rf"gemm(?:_[a-z]+)*_({_TYPE})_{_TYPE}_{_TYPE}(?:_|$)")
_MULTIPLIED: dict[str, Precision] = {
    "i8": "int8",
    "s8": "int8",
    "u8": "int8",
    "f8": "fp8",
    "e4m3": "fp8",
    "e5m2": "fp8",
    "bf16": "bfloat16",
    "f16": "float16",
    "f32": "float32",
    "tf32": "float32",
}
# Older names and shorter ones: ampere_h16816gemm_..., turing_fp16_s1688gemm_....
_KERNEL_TYPES: tuple[tuple[re.Pattern[str], Precision], ...] = (
    (re.compile(r"(?<![a-z0-9])(?:i8(?:i8|f32|f16|bf16|i32)|s8s8|imma|i16832|int8)"), "int8"),
    (re.compile(r"(?<![a-z0-9])(?:e4m3|fp8|qmma)"), "fp8"),
    (re.compile(r"(?<![a-z0-9])bf16"), "bfloat16"),
    (re.compile(r"(?<![a-z0-9])(?:f16f16|h16816|h884|hgemm|fp16|f16)"), "float16"),
    (re.compile(r"(?<![a-z0-9])(?:tf32|f32f32|sgemm|s1688|s884|fp32)"), "float32"),
)
# Narrowest first.
_ORDER: tuple[Precision, ...] = ("fp4", "int4", "fp8", "int8", "bfloat16", "float16", "float32")
_QUANTIZED = frozenset({"fp4", "int4", "fp8", "int8"})

# Layer kinds and kernels that multiply matrices. Myelin writes a fully connected layer as Fc in its camel-case names
# (__myl_FcMulAdd_...) and ends kernel names with a hash, in which "fc" means nothing.
_MULTIPLIES = re.compile(r"gem[mv]|conv(?!ert)|matmul|matrix|fullyconnected", re.IGNORECASE)
_FULLY_CONNECTED = re.compile(r"(?<![A-Za-z0-9])Fc|(?<=[a-z])Fc(?![a-z0-9])|(?<=[a-z])Fc(?=[A-Z])")
_HASH = re.compile(r"0x[0-9a-f]+", re.IGNORECASE)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine.

    Attributes:
        name: Its name in the engine.
        kind: ``LayerType``, e.g. ``gemm``, ``kgen``, ``fusion``, ``CaskConvolution``, ``Reformat``.
        tactic: Name of the chosen kernel; empty where the inspector gives none.
        onnx: ONNX nodes it came from, as far as TensorRT kept track.
        inputs: Precision of each floating or quantized input.
        outputs: Precision of each floating or quantized output.
        weights: Precision of its weights where the inspector lists them.
    """

    name: str
    kind: str
    tactic: str
    onnx: tuple[str, ...]
    inputs: tuple[Precision, ...]
    outputs: tuple[Precision, ...]
    weights: Precision | None

    @property
    def is_reformat(self) -> bool:
        """True for layers that only change a tensor's layout or type."""
        return self.kind.lower() == "reformat" or self.name.startswith("Reformatting CopyNode")

    @property
    def is_copy(self) -> bool:
        """True for layers that only move data."""
        return self.kind.lower() in ("copy", "noop", "shuffle") or bool(
            re.fullmatch(r"__myl_(Move|Copy|Tran|Resh)+\w*", self.name)
        )

    @property
    def is_fused_attention(self) -> bool:
        """True for a kernel that computes a whole attention (``_gemm_mha_v2`` and its relatives)."""
        text = _HASH.sub("", f"{self.name} {self.tactic}").lower()
        return "mha" in text or "flash" in text

    @property
    def is_matrix_product(self) -> bool:
        """True for layers that multiply matrices."""
        kernel = _HASH.sub("", f"{self.kind} {self.tactic}")
        fully_connected = _FULLY_CONNECTED.search(kernel) or _FULLY_CONNECTED.search(self.name)
        return bool(_MULTIPLIES.search(kernel) or fully_connected) or self.is_fused_attention

    @property
    def compute_precision(self) -> Precision:
        """What it multiplies in.

        The kernel's name says so. Without one it is the narrowest type among the inputs, but quantized only if that is
        the first input's or more than one's, and never narrower than the weights: a float activation times quantized
        weights is a float GEMM.
        """
        tactic = _HASH.sub("", self.tactic.lower())
        named = _XMMA.search(tactic) or _CUTLASS.search(tactic)
        if named is not None and named.group(1) in _MULTIPLIED:
            return _MULTIPLIED[named.group(1)]
        for pattern, precision in _KERNEL_TYPES:
            if pattern.search(tactic):
                return precision
        usable = [
            precision
            for precision in self.inputs
            if precision not in _QUANTIZED or self.inputs[0] == precision or self.inputs.count(precision) > 1
        ]
        narrowest = next((precision for precision in _ORDER if precision in usable), self.weights or "other")
        return narrowest if self.weights is None else max(narrowest, self.weights, key=_width)


def _width(precision: Precision) -> int:
    return _ORDER.index(precision) if precision in _ORDER else len(_ORDER)


def parse_layers(text: str) -> tuple[EngineLayer, ...]:
    """Read the output of ``get_engine_information`` in JSON form.

    Raises:
        RuntimeBackendError: It is no such JSON, or the engine was built without detailed layer information.
    """
    try:
        data = json.loads(text)
        layers = data["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeBackendError(
            f"The engine inspector's output cannot be read: {error}",
            "Build the engine again with `vitexport build-engine`.",
        ) from error
    if any(not isinstance(layer, dict) for layer in layers):
        raise RuntimeBackendError(
            "The engine lists only the names of its layers.",
            "Build it again with detailed profiling verbosity, as `vitexport build-engine` does.",
        )
    return tuple(_layer(layer) for layer in layers)


def _layer(data: dict[str, Any]) -> EngineLayer:
    weights = data.get("Weights")
    return EngineLayer(
        name=str(data.get("Name", "")),
        kind=str(data.get("LayerType", "")),
        tactic=str(data.get("TacticName", "")),
        onnx=tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(data.get("Metadata", "")))),
        inputs=_precisions(data.get("Inputs", [])),
        outputs=_precisions(data.get("Outputs", [])),
        weights=_precision(str(weights.get("Type", "")))
        if isinstance(weights, dict) and weights.get("Count")
        else None,
    )


def _precisions(tensors: list[dict[str, Any]]) -> tuple[Precision, ...]:
    precisions: list[Precision] = []
    for tensor in tensors:
        text = next((str(tensor[key]) for key in ("DataType", "Datatype", "Format/Datatype") if key in tensor), "")
        precision = _precision(text)
        if precision is not None:
            precisions.append(precision)
    return tuple(precisions)


def _precision(text: str) -> Precision | None:
    lowered = text.lower()
    return next((precision for name, precision in _TYPES if name in lowered), None)
