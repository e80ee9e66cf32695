"""HTTP: JSON in, JSON out, every error a problem document that names the field. The only file that knows the web framework.

A request is answered inline on the event loop: the work is a fraction of a millisecond of NumPy and C++, less than a hand-over to a
thread would cost.
"""

import contextlib
import re
import socket
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.decoding import decode
from serving.messages import Limits, Problem, RecommendRequest
from serving.openapi import document
from serving.page import Page, start_page
from serving.retriever import Retriever
from towers.errors import RequestError

REQUEST_ID = "x-request-id"
Handler = Callable[[Request], Awaitable[Response]]

_ENCODER = msgspec.json.Encoder()
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")


def build_app(retriever: Retriever) -> Starlette:
    """The service over one retriever; its limits are the retriever's."""
    routes = [
        Route("/v1/recommend", _recommend(retriever), methods=["POST"]),
        Route("/v1/items/{id:path}/similar", _similar(retriever)),
        Route("/health/live", _constant({"status": "live"})),
        Route("/health/ready", _constant(_readiness(retriever))),
        Route("/openapi.json", _constant(document(retriever.limits, retriever.encoder.preprocessor))),
        Route("/", _page(start_page())),
    ]
    handlers = {RequestError: _refused, HTTPException: _http_error, Exception: _our_bug}
    return Starlette(routes=routes, middleware=[Middleware(RequestIds)], exception_handlers=handlers)  # type: ignore[arg-type]


def serve(app: Starlette, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Answer on an already bound socket until SIGTERM or SIGINT; running requests are finished first.

    Args:
        on_ready: called once, when requests are answered.
    """
    # uvicorn stops in good order, then hands the signal on as KeyboardInterrupt; being told to stop is no failure
    with contextlib.suppress(KeyboardInterrupt):
        Server(app, on_ready).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn, telling when it answers; `should_exit = True` stops it.

    Args:
        app: the service.
        on_ready: called once, when requests are answered.
    """

    def __init__(self, app: Starlette, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(app, ws="none", log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=10)
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


class RequestIds:
    """Gives every request an id: the caller's `x-request-id` where it is printable and short, else a new one; echoed in the reply."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == REQUEST_ID.encode()), "")
        request_id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (REQUEST_ID.encode(), request_id.encode())]
            await send(message)

        await self.app(scope, receive, send_with_id)


def _recommend(retriever: Retriever) -> Handler:
    async def recommend(request: Request) -> Response:
        body = await _body(request, retriever.limits)
        return _json(retriever.answer(decode(body, RecommendRequest)))

    return recommend


def _similar(retriever: Retriever) -> Handler:
    async def similar(request: Request) -> Response:
        unknown = next((name for name in request.query_params if name != "k"), None)
        if unknown is not None:
            raise RequestError(unknown[:60], "unknown query parameter; expected k")
        given = request.query_params.get("k", "20")
        if not re.fullmatch(r"-?[0-9]{1,18}", given):
            raise RequestError("k", f"got {given[:60]!r}, expected a whole number from 1 to {retriever.limits.max_k}")
        return _json(retriever.similar_items(request.path_params["id"], int(given)))

    return similar


def _readiness(retriever: Retriever) -> dict[str, object]:
    return {
        "status": "ready",
        "model_version": retriever.model_version,
        "index_version": retriever.bundle.version,
        "items": len(retriever.catalog),
    }


def _constant(value: object) -> Handler:
    async def constant(request: Request) -> Response:
        return _json(value)

    return constant


def _page(shown: Page) -> Handler:
    async def page(request: Request) -> Response:
        return HTMLResponse(shown.text, headers=shown.headers)

    return page


async def _body(request: Request, limits: Limits) -> bytes:
    """The whole body, refused before it is read where its declared length is too large."""
    problem = RequestError("body", f"larger than {limits.max_body_bytes:,} bytes", 413)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise problem
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.max_body_bytes:
            raise problem
        chunks.append(chunk)
    return b"".join(chunks)


def _json(value: object) -> Response:
    return Response(_ENCODER.encode(value), media_type="application/json")


def _problem(request: Request, status: int, detail: str, field: str | None = None, headers: dict[str, str] | None = None) -> Response:
    request_id = request.scope.get("state", {}).get("request_id")
    document = Problem(HTTPStatus(status).phrase, status, detail, field=field, request_id=request_id)
    return Response(_ENCODER.encode(document), status, headers, "application/problem+json")


async def _refused(request: Request, error: RequestError) -> Response:
    return _problem(request, error.status, str(error), error.field)


async def _http_error(request: Request, error: HTTPException) -> Response:
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}. GET /openapi.json lists what can be asked"
    return _problem(request, error.status_code, detail, headers=dict(error.headers or {}))


async def _our_bug(request: Request, error: Exception) -> Response:
    """Says nothing of the inside; the traceback goes to the log, found again by the request id."""
    headers = {REQUEST_ID: request.scope.get("state", {}).get("request_id", "")}
    return _problem(request, 500, "an error of the service; it is in its log", headers=headers)
