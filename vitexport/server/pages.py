"""What a person sees in a browser: the page to drop an image on, and the description of the interface."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from vitexport.server.service import Service

__all__ = ["docs", "openapi", "page", "prepare_page"]

_SCORES = {
    "softmax": "Scores are probabilities of one class among all (softmax).",
    "sigmoid": "Scores are probabilities of each label by itself (sigmoid).",
    "none": "Scores are the values of a regression.",
}


def prepare_page(service: Service) -> HTMLResponse:
    """Return the page, with a policy that lets its own script and style run and nothing else."""
    text = files("vitexport.server").joinpath("page.html").read_text(encoding="utf-8")
    text = text.replace("{{model}}", html.escape(service.predictor.name))
    text = text.replace("{{scoring}}", service.predictor.metadata.scoring)
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src blob:; style-src {_hash(text, 'style')}; "
        f"script-src {_hash(text, 'script')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


def _hash(text: str, tag: str) -> str:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


async def page(request: Request) -> Response:
    """Answer the page."""
    response: Response = request.app.state.page
    return response


async def openapi(request: Request) -> Response:
    """Answer the description of the interface as OpenAPI."""
    return JSONResponse(_describe(request.app.state.service))


async def docs(request: Request) -> Response:
    """Answer the description of the interface for people; the same data as ``/openapi.json``."""
    description = _describe(request.app.state.service)
    sections = [
        f"<h2><code>{verb.upper()} {html.escape(path)}</code></h2><p>{html.escape(operation['summary'])}</p>"
        + (f"<pre>{html.escape(operation['x-example'])}</pre>" if "x-example" in operation else "")
        for path, item in description["paths"].items()
        for verb, operation in item.items()
    ]
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>API</title></head><body>'
        f"<h1>{html.escape(description['info']['title'])}</h1><p>{html.escape(description['info']['description'])}</p>"
        f'{"".join(sections)}<p><a href="/openapi.json">OpenAPI</a></p></body></html>'
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": "default-src 'none'"})


def _describe(service: Service) -> dict[str, Any]:
    name = service.predictor.name
    limits = service.limits
    prediction = {
        "type": "object",
        "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
        "required": ["label", "score"],
    }
    results = {"type": "array", "items": {"type": "array", "items": prediction}}
    identity = {field: {"type": "string"} for field in ("model", "variant", "sha256")}
    binary = {"schema": {"type": "string", "format": "binary"}}
    score_body = {
        "type": "object",
        "required": ["input_data"],
        "properties": {"input_data": {"type": "array", "items": {"type": "string"}, "maxItems": limits.images}},
    }
    top = {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 5}}
    model = f"/v2/models/{name}"
    paths: dict[str, Any] = {
        "/score": {
            "post": _operation(
                "Classify base64 images, in the format of Azure Machine Learning.",
                results,
                body={"application/json": {"schema": score_body}},
                parameters=[top],
                # curl -d drops the line breaks of base64, which JSON would not allow.
                example="(printf '{\"input_data\":[\"'; base64 photo.jpg; printf '\"]}')"
                " | curl -d @- localhost:8000/score",
            )
        },
        "/predict": {
            "post": _operation(
                "Classify one image sent as it is, or several as multipart/form-data files.",
                {"type": "object", "properties": {**identity, "results": results}},
                body={"image/*": binary, "application/octet-stream": binary, "multipart/form-data": {"schema": {}}},
                parameters=[top],
                example="curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' localhost:8000/predict",
            )
        },
        f"{model}/infer": {
            "post": _operation(
                "Run the model on tensors (Open Inference Protocol v2, with the binary tensor data extension).",
                {"type": "object"},
                body={"application/json": {"schema": {"type": "object"}}, "application/octet-stream": binary},
            )
        },
        model: {"get": _operation("Inputs and outputs of the model.", {"type": "object"})},
        f"{model}/ready": {"get": _operation("200 when the model takes requests, 503 when the server stops.", None)},
        "/v2": {"get": _operation("Name, version and protocol extensions of the server.", {"type": "object"})},
        "/v2/health/live": {"get": _operation("200 when the process lives.", None)},
        "/v2/health/ready": {"get": _operation("200 when requests should be sent here, else 503.", None)},
        "/metrics": {"get": _operation("Metrics for Prometheus.", None)},
    }
    description = (
        f"Variant {service.predictor.variant}, model version {service.predictor.version}. "
        f"{_SCORES[service.predictor.metadata.scoring]} "
        f"At most {limits.images} images and {limits.body_bytes:,} bytes per request, {limits.pixels:,} pixels per "
        "image. 429 means that the queue is full: try again."
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": f"vitexport: {name}", "version": version("vitexport"), "description": description},
        "paths": paths,
    }


def _operation(
    summary: str,
    schema: dict[str, Any] | None,
    *,
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    example: str | None = None,
) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Success"}
    if schema is not None:
        success["content"] = {"application/json": {"schema": schema}}
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": success}}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
        operation["responses"]["4XX"] = {"description": "What was wrong with the request"}
    if parameters is not None:
        operation["parameters"] = parameters
    if example is not None:
        operation["x-example"] = example
    return operation
