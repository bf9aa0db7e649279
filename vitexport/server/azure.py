"""``POST /score`` as Azure Machine Learning's image classification endpoints take it, and ``POST /predict``.

The body of ``/score`` is ``{"input_data": ["<base64>", ...]}``; the data-frame form of Azure's other vision endpoints,
``{"input_data": {"columns": ["image"], "data": [...]}}``, is taken too. The response is a list per image of
``{"label", "score"}`` objects, best first.

Source: the sample requests of the models in Azure's catalogue, e.g. ``google-vit-base-patch16-224``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vitexport.server.body import multipart_files, read_body
from vitexport.server.fetch import is_url
from vitexport.server.limits import RequestError
from vitexport.server.service import ImageSource, Service

__all__ = ["error_body", "parse_json", "predict", "score"]

_FORM = 'Send {"input_data": ["<base64 image>", ...]}.'


def error_body(code: str, message: str) -> dict[str, Any]:
    """Return an error in Azure's form."""
    return {"error": {"code": code, "message": message}}


def parse_json(body: bytes) -> Any:
    """Parse a JSON body.

    Raises:
        RequestError: It is not JSON in UTF-8, or nested too deeply.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"Expected a JSON body in UTF-8, found: {error}") from error


async def score(request: Request) -> Response:
    """Answer an Azure-format request."""
    service: Service = request.app.state.service
    top = _top(request)
    async with read_body(request, service) as body:
        sources = await asyncio.get_running_loop().run_in_executor(None, _sources, body, service.limits.images)
        names = [f"input_data[{index}]" for index in range(len(sources))]
        return JSONResponse(await service.predict(sources, names, top))


async def predict(request: Request) -> Response:
    """Answer one image sent as it is, or several as ``multipart/form-data`` files."""
    service: Service = request.app.state.service
    top = _top(request)
    content_type = request.headers.get("content-type", "")
    async with read_body(request, service) as body:
        files = [("body", body)]
        if content_type.lower().startswith("multipart/"):
            files = multipart_files(content_type, body)
        results = await service.predict([data for _, data in files], [name for name, _ in files], top)
    predictor = service.predictor
    identity = {"model": predictor.name, "variant": predictor.variant, "sha256": predictor.sha256}
    return JSONResponse({**identity, "results": results})


def _top(request: Request) -> int:
    text = request.query_params.get("top", "5")
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= 1_000_000):
        raise RequestError(400, f"Expected ?top=N with N of at least 1, found {text[:40]!r}.")
    return int(text[:9])


def _sources(body: bytes, limit: int) -> list[ImageSource]:
    data = parse_json(body)
    if not isinstance(data, Mapping) or "input_data" not in data:
        raise RequestError(400, 'Expected a JSON object with "input_data".', _FORM)
    entries = data["input_data"]
    if isinstance(entries, Mapping):
        if entries.get("columns") not in (["image"], None):
            raise RequestError(400, 'Expected "columns": ["image"] in input_data.', _FORM)
        entries = entries.get("data")
    if not isinstance(entries, list):
        raise RequestError(400, f"Expected input_data to be a list, found {type(entries).__name__}.", _FORM)
    if len(entries) > limit:
        raise RequestError(
            413, f"Expected at most {limit} images per request, found {len(entries)}.", "Send several requests."
        )
    return [_source(entry, index) for index, entry in enumerate(entries)]


def _source(entry: object, index: int) -> ImageSource:
    if isinstance(entry, list) and len(entry) == 1:
        entry = entry[0]  # a row of the data-frame form
    if not isinstance(entry, str):
        raise RequestError(400, f"Expected input_data[{index}] to be a string, found {type(entry).__name__}.", _FORM)
    if entry.startswith("data:"):
        entry = entry.partition(",")[2]
    elif is_url(entry):
        return entry
    try:
        # Line breaks are usual in base64 made by command-line tools; anything else foreign is an error.
        return base64.b64decode("".join(entry.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"Expected base64 in input_data[{index}], found: {error}.", _FORM) from error
