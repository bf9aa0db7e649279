"""Put the weights of an ONNX file into an engine that was built to take them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vitexport.errors import EngineBuildError
from vitexport.files import sha256_file, write_atomic
from vitexport.runtimes.cuda.probe import require_gpu
from vitexport.runtimes.tensorrt.api import TensorRTApi, load_api
from vitexport.runtimes.tensorrt.plan import deserialize
from vitexport.runtimes.tensorrt.sidecar import EngineSidecar, mismatches, read_sidecar, sidecar_path

__all__ = ["refit_engine"]


def refit_engine(engine: Path, model: Path, out: Path) -> EngineSidecar:
    """Complete a weight-stripped engine, or give a refittable one new weights; needs the GPU it was built for.

    Args:
        engine: The plan, with its sidecar.
        model: ONNX file with the same graph. For a stripped engine it must be the file the engine was built from.
        out: Where the complete plan goes, with its sidecar.

    Returns:
        The new sidecar.

    Raises:
        EngineBuildError: The engine takes no weights, belongs to another file or machine, or TensorRT refuses.
        RuntimeBackendError: There is no GPU.
    """
    for path, what in ((engine, "an engine"), (model, "an ONNX file")):
        if not path.is_file():
            raise EngineBuildError(f"Expected {what} at '{path}', found none.", "Check the path.")
    sidecar = read_sidecar(engine)
    if sidecar is None or not sidecar.refittable:
        raise EngineBuildError(
            f"'{engine}' was not built to take weights.", "Build it with --refit or --strip-weights."
        )
    digest = sha256_file(model)
    if sidecar.needs_refit and digest != sidecar.onnx_sha256:
        raise EngineBuildError(
            f"'{engine}' was made from an ONNX file with sha256 {sidecar.onnx_sha256[:16]}..., and '{model}' has "
            f"{digest[:16]}....",
            "Give the ONNX file the engine was built from; a stripped engine keeps weights that were folded into it.",
        )
    gpu = require_gpu(f"Refitting '{engine.name}'")
    api = load_api(sidecar.product)
    reasons = mismatches(sidecar, product=api.product, version=api.version, gpu=gpu)
    if reasons:
        raise EngineBuildError(
            f"'{engine}' cannot be refitted here: {'; '.join(reasons)}.", "Build it on this machine."
        )
    loaded = deserialize(api, engine)
    _replace_weights(api, loaded, model)
    plan = _serialize(api, loaded)
    complete = sidecar.model_copy(
        update={
            "needs_refit": False,
            "onnx_sha256": digest,
            "variant": sidecar.variant if digest == sidecar.onnx_sha256 else model.stem,
            "engine_sha256": hashlib.sha256(plan).hexdigest(),
            "engine_bytes": len(plan),
        }
    )
    write_atomic(sidecar_path(out), complete.to_json())
    write_atomic(out, plan)
    return complete


def _replace_weights(api: TensorRTApi, engine: Any, model: Path) -> None:
    with api.messages() as messages:
        refitter = api.module.Refitter(engine, api.logger)
        parser = api.module.OnnxParserRefitter(refitter, api.logger)
        accepted = parser.refit_from_file(str(model)) and refitter.refit_cuda_engine()
        missing = list(refitter.get_missing_weights())
    if missing or not accepted:
        reason = f"weights are missing: {', '.join(missing[:5])}" if missing else "; ".join(messages)
        raise EngineBuildError(
            f"{api.product} {api.version} cannot put the weights of '{model}' into the engine: "
            f"{reason or 'no reason given'}",
            "The ONNX file must have the graph the engine was built from.",
        )


def _serialize(api: TensorRTApi, engine: Any) -> bytes:
    config = engine.create_serialization_config()
    exclude = api.member("SerializationFlag", "EXCLUDE_WEIGHTS")
    if exclude is not None:
        config.clear_flag(exclude)
    include_refit = api.member("SerializationFlag", "INCLUDE_REFIT")
    if include_refit is not None:
        config.set_flag(include_refit)
    plan = engine.serialize_with_config(config)
    if plan is None:
        raise EngineBuildError(f"{api.product} {api.version} cannot serialize the refitted engine.", "Free memory.")
    return bytes(plan)
