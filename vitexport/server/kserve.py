"""The Open Inference Protocol (KServe v2) over HTTP, with Triton's binary tensor extension, on ``/v2``.

Sources: "Open Inference Protocol", REST specification (kserve/open-inference-protocol), and Triton's "Binary tensor
data extension" (triton-inference-server/server, docs/protocol/extension_binary_data.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vitexport.errors import InferenceError
from vitexport.server.azure import parse_json
from vitexport.server.body import read_body
from vitexport.server.limits import RequestError
from vitexport.server.service import Service
from vitexport.tensors import Array, TensorSpec

__all__ = ["BINARY_HEADER", "infer", "live", "model_metadata", "model_ready", "ready", "server_metadata"]

BINARY_HEADER = "Inference-Header-Content-Length"

_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_DTYPES = {datatype: np.dtype(name) for name, datatype in _DATATYPES.items()}


async def live(request: Request) -> Response:
    """Answer that the process lives."""
    return Response(status_code=200)


async def ready(request: Request) -> Response:
    """Answer whether requests should be sent here."""
    service: Service = request.app.state.service
    return Response(status_code=503 if service.draining else 200)


async def server_metadata(request: Request) -> Response:
    """Answer who this is."""
    from importlib.metadata import version

    return JSONResponse({"name": "vitexport", "version": version("vitexport"), "extensions": ["binary_tensor_data"]})


async def model_ready(request: Request) -> Response:
    """Answer whether a model is here."""
    _check_model(request)
    return await ready(request)


async def model_metadata(request: Request) -> Response:
    """Answer what a model takes and gives."""
    service = _check_model(request)
    runtime = service.predictor.runtime
    return JSONResponse(
        {
            "name": service.predictor.name,
            "versions": [service.predictor.version],
            "platform": runtime.name,
            "parameters": _parameters_of(service),
            "inputs": [_describe(spec) for spec in runtime.inputs],
            "outputs": [_describe(spec) for spec in runtime.outputs],
        }
    )


async def infer(request: Request) -> Response:
    """Run the model on the tensors of a request."""
    service = _check_model(request)
    async with read_body(request, service) as body:
        head, binary = _split(body, request.headers.get(BINARY_HEADER))
        wanted = _wanted(head, service.predictor.runtime.outputs)
        feeds = _feeds(head, binary)
        outputs = await service.infer(feeds)
    identity: dict[str, Any] = {"model_name": service.predictor.name, "model_version": service.predictor.version}
    identity["parameters"] = _parameters_of(service)
    if "id" in head:
        identity["id"] = str(head["id"])
    return _response(identity, wanted, outputs)


def _parameters_of(service: Service) -> dict[str, str]:
    """Return what the protocol has no name for: which variant of the bundle this is, and the hash of its file."""
    return {"variant": service.predictor.variant, "sha256": service.predictor.sha256}


def _check_model(request: Request) -> Service:
    service: Service = request.app.state.service
    name, version = request.path_params["model"], request.path_params.get("version")
    if name != service.predictor.name:
        raise RequestError(404, f"Expected the model '{service.predictor.name}', found '{name[:100]}'.")
    if version not in (None, service.predictor.version):
        raise RequestError(404, f"Expected version '{service.predictor.version}', found '{version[:100]}'.")
    return service


def _describe(spec: TensorSpec) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else -1 for axis in spec.shape]
    return {"name": spec.name, "datatype": _DATATYPES.get(spec.dtype, spec.dtype), "shape": shape}


def _split(body: bytes, length: str | None) -> tuple[Mapping[str, Any], memoryview]:
    """Return the JSON head and the binary data behind it."""
    view = memoryview(body)
    end = len(body)
    if length is not None:
        if not (length.isascii() and length.isdecimal() and int(length) <= len(body)):
            raise RequestError(400, f"Expected {BINARY_HEADER} to be at most {len(body)}, found {length[:40]!r}.")
        end = int(length)
    head = parse_json(bytes(view[:end]))
    if not isinstance(head, Mapping) or not isinstance(head.get("inputs"), list):
        raise RequestError(400, 'Expected a JSON object with a list of "inputs".')
    return head, view[end:]


def _feeds(head: Mapping[str, Any], binary: memoryview) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    offset = 0
    for entry in head["inputs"]:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise RequestError(400, 'Expected every input to be an object with a "name".')
        name = entry["name"]
        dtype, shape = _tensor_type(entry, name)
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            feeds[name] = _from_json(entry.get("data"), dtype, shape, name)
            continue
        expected = math.prod(shape) * dtype.itemsize
        if size != expected or offset + expected > len(binary):
            raise RequestError(
                400,
                f"Expected {expected} bytes for input '{name}', found binary_data_size {size!r} "
                f"and {len(binary) - offset} bytes.",
            )
        feeds[name] = np.frombuffer(binary[offset : offset + expected], dtype).reshape(shape)
        offset += expected
    if offset != len(binary):
        raise RequestError(400, f"Expected {offset} bytes of binary data, found {len(binary)}.")
    return feeds


def _tensor_type(entry: Mapping[str, Any], name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if datatype not in _DTYPES:
        raise RequestError(
            400, f"Expected the datatype of '{name}' to be one of {', '.join(_DTYPES)}, found {datatype!r}."
        )
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(axis) is int and axis >= 0 for axis in shape):
        raise RequestError(400, f"Expected the shape of '{name}' to be a list of sizes, found {str(shape)[:100]}.")
    return _DTYPES[datatype], tuple(shape)


def _from_json(data: object, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> Array:
    if not isinstance(data, list):
        raise RequestError(400, f"Expected input '{name}' to have \"data\" or binary data, found neither.")
    try:
        # asarray() would silently cut 300 to uint8; going through the widest type of the kind shows what was sent.
        wide = np.asarray(data, dtype=np.float64 if dtype.kind == "f" else None)
        if wide.dtype.kind not in ("b" if dtype.kind == "b" else "iuf" if dtype.kind == "f" else "iu"):
            raise RequestError(400, f"Expected {dtype.name} values in input '{name}', found {wide.dtype.name}.")
        with np.errstate(over="ignore"):
            array = wide.astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(array, wide):
            raise RequestError(400, f"Values of input '{name}' do not fit {dtype.name}.")
        return array.reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestError(
            400, f"Expected {list(shape)} values in input '{name}', found something else: {error}"
        ) from error


def _parameters(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, Mapping):
        raise RequestError(400, 'Expected "parameters" to be an object.')
    return parameters


@dataclass(frozen=True)
class _Wanted:
    name: str
    binary: bool


def _wanted(head: Mapping[str, Any], outputs: tuple[TensorSpec, ...]) -> list[_Wanted]:
    everywhere = bool(_parameters(head).get("binary_data_output", False))
    entries = head.get("outputs") or [{"name": spec.name} for spec in outputs]
    known = {spec.name for spec in outputs}
    if not isinstance(entries, list):
        raise RequestError(400, 'Expected "outputs" to be a list.')
    wanted: dict[str, _Wanted] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or entry.get("name") not in known:
            raise RequestError(400, f"Expected outputs of {', '.join(sorted(known))}, found {str(entry)[:100]}.")
        binary = bool(_parameters(entry).get("binary_data", everywhere))
        wanted[entry["name"]] = _Wanted(entry["name"], binary)
    return list(wanted.values())


def _response(head: dict[str, Any], wanted: list[_Wanted], outputs: Mapping[str, Array]) -> Response:
    described, payload = [], []
    for want in wanted:
        array = np.ascontiguousarray(outputs[want.name])
        entry: dict[str, Any] = {
            "name": want.name,
            "datatype": _DATATYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        if want.binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            payload.append(array.tobytes())
        elif not np.isfinite(array).all():
            raise InferenceError(
                f"Output '{want.name}' holds NaN or infinity, which JSON cannot carry.", "Ask for binary data."
            )
        else:
            entry["data"] = array.reshape(-1).tolist()
        described.append(entry)
    text = json.dumps({**head, "outputs": described}).encode()
    if not payload:
        return Response(text, media_type="application/json")
    return Response(
        b"".join([text, *payload]),
        media_type="application/octet-stream",
        headers={BINARY_HEADER: str(len(text))},
    )
