"""The ASGI application: routes, and the one place where errors become responses."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitexport.errors import VitexportError
from vitexport.predict.predictor import Predictor
from vitexport.server import azure, kserve, pages
from vitexport.server.body import linger
from vitexport.server.limits import BatchSettings, Limits, RequestError
from vitexport.server.service import Service

__all__ = ["create_app"]

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

_CODES = {
    400: "BadRequest",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    413: "PayloadTooLarge",
    415: "UnsupportedMediaType",
    429: "TooManyRequests",
}


def create_app(predictor: Predictor, limits: Limits | None = None, batching: BatchSettings | None = None) -> Starlette:
    """Return the application that serves a model; it closes the predictor when it stops.

    Args:
        predictor: The model.
        limits: What is accepted; defaults otherwise.
        batching: Dynamic batching; defaults otherwise.
    """
    service = Service(predictor, limits or Limits(), batching or BatchSettings())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    model = "/v2/models/{model}"
    version = model + "/versions/{version}"
    gets: list[tuple[str, str, Endpoint]] = [
        ("page", "/", pages.page),
        ("docs", "/docs", pages.docs),
        ("openapi", "/openapi.json", pages.openapi),
        ("metrics", "/metrics", metrics),
        ("live", "/v2/health/live", kserve.live),
        ("ready", "/v2/health/ready", kserve.ready),
        ("server_metadata", "/v2", kserve.server_metadata),
        ("server_metadata", "/v2/", kserve.server_metadata),
        ("model_metadata", model, kserve.model_metadata),
        ("model_metadata", version, kserve.model_metadata),
        ("model_ready", model + "/ready", kserve.model_ready),
        ("model_ready", version + "/ready", kserve.model_ready),
    ]
    posts: list[tuple[str, str, Endpoint]] = [
        ("score", "/score", azure.score),
        ("predict", "/predict", azure.predict),
        ("infer", model + "/infer", kserve.infer),
        ("infer", version + "/infer", kserve.infer),
    ]
    routes = [Route(path, _responding(name, endpoint), methods=["GET"]) for name, path, endpoint in gets]
    routes += [Route(path, _responding(name, endpoint), methods=["POST"]) for name, path, endpoint in posts]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False
    app.add_middleware(_Headers, service=service)
    app.state.service = service
    app.state.page = pages.prepare_page(service)
    return app


def _responding(name: str, endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with its errors worded in the protocol's form, and every response counted."""

    async def respond(request: Request) -> Response:
        started = time.perf_counter()
        service: Service = request.app.state.service
        try:
            response = await endpoint(request)
        except RequestError as error:
            response = _refusal(request, error, service.limits.linger_seconds)
        except VitexportError as error:
            # The model failed: the client gets to know that, the operator why.
            logger.exception("cannot answer %s", name)
            response = JSONResponse(_error_body(request, 500, error.message), status_code=500)
        service.observe(name, response.status_code, started)
        return response

    return respond


def _refusal(request: Request, error: RequestError, linger_seconds: float) -> Response:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    body = _error_body(request, error.status, f"{error.message} {error.hint}".strip())
    if not error.close:
        return JSONResponse(body, error.status, headers)
    headers["Connection"] = "close"
    return _LastResponse(body, error.status, headers, linger_seconds=0 if error.status == 408 else linger_seconds)


def _error_body(request: Request, status: int, message: str) -> dict[str, Any]:
    if request.url.path.startswith("/v2"):
        return {"error": message}
    return azure.error_body(_CODES.get(status, "InternalServerError" if status >= 500 else "Error"), message)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path[:200]}. GET /docs lists what there is."
    headers = {**(error.headers or {}), "Connection": "close"}
    return _LastResponse(_error_body(request, error.status_code, message), error.status_code, headers, linger_seconds=1)


class _LastResponse(JSONResponse):
    """The response to a request whose body has not been read to the end; the connection closes after it."""

    def __init__(self, content: Any, status: int, headers: dict[str, str], *, linger_seconds: float) -> None:
        super().__init__(content, status, headers)
        self._linger_seconds = linger_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        await linger(receive, self._linger_seconds)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Headers:
    """Adds what every response carries, the model's identity first; while the server drains, that it closes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        predictor = service.predictor
        self._headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"x-model-variant", quote(predictor.variant, safe=" ").encode()),  # a file may have any name
            (b"x-model-sha256", predictor.sha256.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                headers += self._headers
                if self._service.draining and (b"connection", b"close") not in headers:
                    headers.append((b"connection", b"close"))
            await send(message)

        await self._app(scope, receive, send_with_headers)
