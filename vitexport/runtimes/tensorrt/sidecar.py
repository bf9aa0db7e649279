"""The JSON file beside an engine: what the plan itself cannot say without being loaded.

A plan is opaque, and loading one made for another GPU, version or product fails late and badly. ``model.engine.json``
says what the engine is for, so that the refusal is immediate and names the reason. It also carries what the ONNX file
requested, for the audit, and the model's metadata, so that an engine predicts like any other file.

The file's fields, how it is read and checked against its plan, and the rules where an engine runs.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vitexport.errors import RuntimeBackendError
from vitexport.files import sha256_file
from vitexport.runtimes.cuda.probe import GpuInfo
from vitexport.runtimes.tensorrt.api import ProductName
from vitexport.tensors import TensorSpec

__all__ = [
    "SCHEMA",
    "EngineSidecar",
    "ProfileShapes",
    "RequestedGemm",
    "TensorRecord",
    "describe",
    "mismatches",
    "product_of",
    "read_sidecar",
    "sidecar_path",
    "this_platform",
]

SCHEMA: Final = 2
"""Version of the file's fields. 2 calls ``product`` what 1 called ``provider``."""

Precision = Literal["float32", "float16", "bfloat16", "int8", "fp8", "int4", "fp4", "other"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorRecord(_Record):
    """One engine input or output; a string names a dynamic axis."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def spec(self) -> TensorSpec:
        """The same as a :class:`TensorSpec`."""
        return TensorSpec(self.name, self.shape, self.dtype)


class ProfileShapes(_Record):
    """Shapes of one input in one optimisation profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class RequestedGemm(_Record):
    """A GEMM or convolution as the ONNX graph requests it.

    Attributes:
        name: ONNX node name.
        kind: ``weighted`` (one constant operand), ``attention`` (two activations) or ``convolution``.
        precision: Data type both operands arrive in; Q/DQ counts as the quantized type.
        flops: Multiply and add operations at batch 1.
    """

    name: str
    kind: Literal["weighted", "attention", "convolution"]
    precision: Precision
    flops: int


class EngineSidecar(_Record):
    """Facts about an engine file.

    Attributes:
        product: ``tensorrt`` or ``tensorrt-rtx``.
        version: Version that built it.
        platform: Operating system and processor, e.g. ``linux-aarch64``; engines do not move between them.
        gpu: GPU it was built on; empty when built without one.
        compute_capabilities: Compute capabilities it runs on; empty means the product's default set.
        hardware_compatibility: ``none``, ``ampere_plus`` or ``same_compute_capability``.
        version_compatible: Whether later releases can run it.
        needs_refit: Whether its weights were left out.
        refittable: Whether its weights can be replaced.
        weight_streaming: Whether weights may stay in host memory.
        variant: Which variant of a bundle that file is, or its name without the ending.
        onnx_sha256: ONNX file it was made from.
        engine_sha256: The plan.
        engine_bytes: Size of the plan.
        inputs: Inputs.
        outputs: Outputs.
        profiles: Input name -> shapes, one mapping per optimisation profile.
        precision: What most of the work of the weighted GEMMs was requested to compute in.
        requested: Every GEMM the ONNX graph requests.
        settings: Settings of the build.
        metadata: Metadata of the ONNX file; see :class:`vitexport.bundle.metadata.ModelMetadata`.
    """

    schema_: Literal[2] = SCHEMA
    product: ProductName
    version: str
    platform: str
    gpu: str
    compute_capabilities: tuple[str, ...]
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"]
    version_compatible: bool
    needs_refit: bool
    refittable: bool
    weight_streaming: bool
    variant: str = ""
    onnx_sha256: str
    engine_sha256: str
    engine_bytes: int
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    profiles: tuple[dict[str, ProfileShapes], ...]
    precision: Precision
    requested: tuple[RequestedGemm, ...]
    settings: dict[str, Any]
    metadata: dict[str, str]

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=lambda name: name.rstrip("_"), populate_by_name=True
    )

    def to_json(self) -> str:
        """Return the file's content."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False) + "\n"


def sidecar_path(engine: Path) -> Path:
    """Return where the sidecar of an engine lies: ``model.engine`` -> ``model.engine.json``."""
    return engine.with_name(engine.name + ".json")


def product_of(engine: Path) -> ProductName:
    """Return which product opens an engine: what its sidecar says, or ``tensorrt`` without a readable one."""
    try:
        data = json.loads(sidecar_path(engine).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "tensorrt"
    return "tensorrt-rtx" if isinstance(data, dict) and data.get("product") == "tensorrt-rtx" else "tensorrt"


def this_platform() -> str:
    """Return operating system and processor, e.g. ``linux-x86_64``."""
    return f"{sys.platform}-{platform.machine().lower()}"


def read_sidecar(engine: Path, *, check_hash: bool = True) -> EngineSidecar | None:
    """Read the sidecar of an engine; None where there is none (a plan that trtexec made, say).

    Args:
        engine: The plan.
        check_hash: Compare the plan's SHA-256 as well as its size.

    Raises:
        RuntimeBackendError: The sidecar cannot be read, has another schema, or belongs to another plan.
    """
    path = sidecar_path(engine)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        _check_schema(path, data)
        sidecar = EngineSidecar.model_validate_json(json.dumps(data))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = "".join(f"{part}: " for part in first["loc"]) if first else ""
        raise RuntimeBackendError(
            f"The sidecar '{path}' cannot be read: {where}{first['msg'] if first else error}.",
            "Build the engine again, or remove the sidecar to open the plan unchecked.",
        ) from error
    size = engine.stat().st_size
    if size != sidecar.engine_bytes or (check_hash and sha256_file(engine) != sidecar.engine_sha256):
        raise RuntimeBackendError(
            f"'{engine}' is not the engine its sidecar describes: expected {sidecar.engine_bytes} bytes with sha256 "
            f"{sidecar.engine_sha256[:16]}..., found {size} bytes.",
            "Copy engine and sidecar again together, or build the engine again.",
        )
    return sidecar


def _check_schema(path: Path, data: Any) -> None:
    """Refuse a sidecar of another schema as that; its fields would only fail one by one."""
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema != SCHEMA:
        raise RuntimeBackendError(
            f"Expected engine sidecar schema {SCHEMA} in '{path}', found {schema}.",
            "Build the engine again with `vitexport build-engine`.",
        )


def mismatches(sidecar: EngineSidecar, *, product: str, version: str, gpu: GpuInfo | None) -> list[str]:
    """Return why an engine cannot run here, one sentence each; empty when nothing speaks against it.

    Rules (vendor's "Engine Compatibility" pages): a TensorRT engine runs on exactly the version that built it, or, when
    built version-compatible, on later ones; a TensorRT-RTX engine never moves between releases. Without hardware
    compatibility an engine runs on its own compute capability; ``ampere_plus`` runs on discrete GPUs of 8.0 and later.

    Args:
        sidecar: The engine.
        product: Product that would run it.
        version: Version of that product.
        gpu: GPU that would run it; None skips that check.
    """
    if sidecar.product != product:
        return [f"it was built for {sidecar.product}, and this is {product}"]
    reasons: list[str] = []
    if sidecar.platform != this_platform():
        reasons.append(f"it was built on {sidecar.platform}, and this is {this_platform()}")
    if sidecar.version != version:
        later = _numbers(version) >= _numbers(sidecar.version)
        if not (sidecar.version_compatible and later and product == "tensorrt"):
            form = "a version-compatible engine of" if sidecar.version_compatible else "an engine of"
            reasons.append(f"it is {form} version {sidecar.version}, and this is version {version}")
    if gpu is not None and not _runs_on(sidecar, gpu):
        targets = ", ".join(sidecar.compute_capabilities) or "8.0 and later"
        reasons.append(
            f"it was built for compute capability {targets}{f' ({sidecar.gpu})' if sidecar.gpu else ''}, and "
            f"{gpu.name} has {gpu.compute_capability}"
        )
    return reasons


def _runs_on(sidecar: EngineSidecar, gpu: GpuInfo) -> bool:
    targets = sidecar.compute_capabilities
    if not targets and sidecar.product == "tensorrt-rtx":
        # "By default, an engine can be run on compute capability 8.0, 8.6, 8.9, 12.0, and later" (CPU-Only AOT page).
        return _numbers(gpu.compute_capability) >= (8, 0)
    if not targets or gpu.compute_capability in targets:
        return True
    if sidecar.hardware_compatibility == "ampere_plus":
        return not gpu.integrated and _numbers(gpu.compute_capability) >= (8, 0)
    return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def describe(sidecar: EngineSidecar) -> Mapping[str, str]:
    """Return the facts a person asks for first, as label -> text."""
    targets = ", ".join(sidecar.compute_capabilities) or "8.0 and later (the product's default)"
    shapes = "; ".join(
        ", ".join(f"{name} {'x'.join(map(str, s.min))}..{'x'.join(map(str, s.max))}" for name, s in profile.items())
        for profile in sidecar.profiles
    )
    return {
        "product": f"{sidecar.product} {sidecar.version}",
        "platform": sidecar.platform,
        "built on": sidecar.gpu or "no GPU",
        "compute capability": targets,
        "precision": sidecar.precision,
        "inputs": "; ".join(item.spec.describe() for item in sidecar.inputs),
        "outputs": "; ".join(item.spec.describe() for item in sidecar.outputs),
        "profiles": shapes or "none (fixed shapes)",
        "size": f"{sidecar.engine_bytes / 2**20:.1f} MiB",
        "weights": "left out; complete it with refit" if sidecar.needs_refit else "inside",
        "made from": f"{sidecar.variant or 'an ONNX file'}, sha256 {sidecar.onnx_sha256}",
    }
