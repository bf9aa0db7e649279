"""A Triton model repository from a bundle: model, ``config.pbtxt``, labels.

Field names and types are those of Triton's ``model_config.proto``; the tests parse what is written here with that very
definition. Source: Triton documentation, "Model Repository" and "Model Configuration".
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from vitexport.bundle.bundle import Artifact, Bundle
from vitexport.bundle.metadata import ModelSpec
from vitexport.errors import BundleError, VitexportError
from vitexport.files import atomic_path, write_atomic
from vitexport.runtimes.tensorrt.sidecar import read_sidecar
from vitexport.tensors import TensorSpec, batch_limit
from vitexport.verification.select import Choice

__all__ = ["TritonSettings", "write_repository"]

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}


@dataclass(frozen=True)
class TritonSettings:
    """How Triton shall run the model.

    Attributes:
        name: Model name; None takes the bundle's.
        max_batch: Largest batch; a model of a fixed batch size has its own.
        max_delay_us: Microseconds a request waits for others.
        instances: Copies of the model that run at the same time.
        kind: ``gpu`` or ``cpu``.
        tensorrt: Let ONNX Runtime run the graph through its TensorRT execution provider.
    """

    name: str | None = None
    max_batch: int = 8
    max_delay_us: int = 2000
    instances: int = 1
    kind: str = "gpu"
    tensorrt: bool = False


def write_repository(bundle: Bundle, choice: Choice, out: str | Path, settings: TritonSettings) -> Path:
    """Write ``OUT/NAME/config.pbtxt``, ``OUT/NAME/1/model.onnx`` (or ``model.plan``) and labels.

    Args:
        bundle: The bundle.
        choice: Which model of it.
        out: Model repository, which may hold other models.
        settings: See :class:`TritonSettings`.

    Returns:
        ``OUT/NAME``.

    Raises:
        BundleError: Triton has no type for an input or output, or an engine has lost its sidecar.
        VitexportError: The name is no directory name, or an engine is asked to run on a CPU.
    """
    artifact = bundle.artifact(choice.variant)
    name = settings.name or re.sub(r"[^A-Za-z0-9_.-]", "_", bundle.name)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise VitexportError(
            f"Expected a model name of letters, digits, '_', '-' and '.', found '{name}'.", "Use --name."
        )
    engine = artifact.kind == "engine"
    if engine and settings.kind == "cpu":
        raise VitexportError("An engine cannot run on a CPU.", "Use --kind gpu, or choose an ONNX file with --variant.")
    if engine and settings.tensorrt:
        raise VitexportError(
            "Expected an ONNX file for ONNX Runtime's TensorRT provider, found an engine.",
            "Leave --tensorrt out, or choose an ONNX file with --variant.",
        )
    folder = Path(out) / name
    source = bundle.path(artifact)
    target = folder / "1" / ("model.plan" if engine else "model.onnx")
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        for companion in artifact.companions:
            # External data is found beside the model under the name inside it; a sidecar is ours alone.
            if not engine:
                shutil.copyfile(bundle.root / companion.path, temporary.with_name(Path(companion.path).name))
    inputs, outputs = _interface(bundle.model, artifact, source)
    labels = bool(bundle.class_names) and bundle.model.task == "classify"
    if labels:
        lines = (label.replace("\n", " ") for label in bundle.class_names)
        write_atomic(folder / "labels.txt", "\n".join(lines) + "\n")
    write_atomic(folder / "preprocess.json", bundle.preprocess.model_dump_json(indent=2) + "\n")
    config = _config(name, inputs, outputs, settings, engine=engine, labels=labels)
    facts = {"variant": choice.variant, "sha256": choice.sha256}
    if bundle.model.task == "classify":  # the outputs are logits; a client must know what makes scores of them
        facts["scoring"] = bundle.metadata.scoring
    config += "".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}\n"
        for key, value in facts.items()
    )
    head = "".join(f"# {line}\n" for line in (f"{bundle.name}: {choice.title}", *choice.notes))
    write_atomic(folder / "config.pbtxt", head + config)
    return folder


def _interface(
    model: ModelSpec, artifact: Artifact, path: Path
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    if artifact.kind != "engine":
        return model.inputs, model.outputs
    sidecar = read_sidecar(path)
    if sidecar is None:
        raise BundleError(f"The engine '{path}' has lost its sidecar.", "Copy the bundle again as a whole.")
    inputs = tuple(tensor.spec for tensor in sidecar.inputs)
    return inputs, tuple(tensor.spec for tensor in sidecar.outputs)


def _config(
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    settings: TritonSettings,
    *,
    engine: bool,
    labels: bool,
) -> str:
    fixed = batch_limit(inputs[0])
    # A fixed batch is part of the shape: Triton may not add an axis of its own, nor batch requests together.
    max_batch = 0 if fixed else settings.max_batch
    blocks = [
        f"name: {json.dumps(name)}",
        'platform: "tensorrt_plan"' if engine else 'backend: "onnxruntime"',
        f"max_batch_size: {max_batch}",
        *(_tensor("input", tensor, max_batch) for tensor in inputs),
        *(
            _tensor("output", tensor, max_batch, 'label_filename: "labels.txt"' if labels and index == 0 else "")
            for index, tensor in enumerate(outputs)
        ),
        _block("instance_group [", [f"{{ count: {settings.instances} kind: KIND_{settings.kind.upper()} }}"], "]"),
    ]
    if max_batch > 1:
        blocks.append(_block("dynamic_batching {", [f"max_queue_delay_microseconds: {settings.max_delay_us}"], "}"))
    if settings.tensorrt and not engine:
        blocks.append('optimization { execution_accelerators { gpu_execution_accelerator [ { name: "tensorrt" } ] } }')
    return "\n".join(blocks) + "\n"


def _tensor(field: str, tensor: TensorSpec, max_batch: int, extra: str = "") -> str:
    if tensor.dtype not in _TYPES:
        raise BundleError(f"Triton has no type for {tensor.describe()}.", "Export the model with float inputs.")
    axes = tensor.shape[1:] if max_batch else tensor.shape
    dims = ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in axes)
    lines = [f"name: {json.dumps(tensor.name)}", f"data_type: {_TYPES[tensor.dtype]}", f"dims: [ {dims} ]"]
    return _block(f"{field} {{", [*lines, *([extra] if extra else [])], "}")


def _block(head: str, lines: list[str], foot: str) -> str:
    return "\n".join([head, *(f"  {line}" for line in lines), foot])
