"""The service on Starlette and uvicorn: routes to endpoints, nothing else. The only file that knows Starlette.

A request for a list is answered inline on the event loop: the work is a fraction of a millisecond of NumPy and C++, less than a hand-over
to a thread would cost. What is stored is, one call after the other, in a thread: it may wait for the disk or for another process.
"""

import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api_keys import ApiKeys
from serving.calls import Endpoint, Front, log_call, problem, request_id_of
from serving.connection import Connection
from serving.engine import Engine
from serving.handlers import Handlers
from serving.metrics import OTHER, Metrics
from serving.rights import Rights
from serving.routes import ROUTE_NAMES, ROUTES


@dataclass(frozen=True)
class AppOptions:
    """What a deployment decides about the door.

    Attributes:
        metrics: the counters.
        keys: who may ask; None = everybody.
        access_log: a log line for every call.
        rights: what acts on people's rows; None = this service keeps none.
        read_timeout_s: seconds in which a request's body must have come.
    """

    metrics: Metrics
    keys: ApiKeys | None = None
    access_log: bool = False
    rights: Rights | None = None
    read_timeout_s: float = 10.0


class Segment(StringConvertor):
    """What stands between two slashes; unlike Starlette's own `str` also nothing, so that an empty id is answered as an id."""

    regex = "[^/]*"


register_url_convertor("segment", Segment())


class Straight:
    """Calls of a fixed path go straight to their endpoint; Starlette, which tries its routes one after the other, has all others.

    It is shown the path as it was sent: in that a slash is one of the route and never one of an id (`%2F`), which the endpoint decodes.

    Args:
        app: answers them.
        routes: of that application; an endpoint is an ASGI application.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self._app = app
        fixed = [route for route in routes if not route.param_convertors]
        self._endpoints: dict[tuple[str, str], ASGIApp] = {
            (route.path, method): route.endpoint for route in fixed for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = None
        if scope["type"] == "http":
            found = self._endpoints.get((scope["path"], scope["method"]))
            if found is None:
                scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await (found or self._app)(scope, receive, send)


def build_app(engine: Engine, options: AppOptions | None = None) -> ASGIApp:
    """The service over whichever retriever the engine holds; its limits are the retriever's."""
    options = options or AppOptions(Metrics(ROUTE_NAMES))
    metrics = options.metrics
    retriever = engine.retriever
    retriever.metrics = metrics
    front = Front(metrics, options.keys, retriever.limits.max_body_bytes, options.access_log, options.read_timeout_s)
    handlers = Handlers(engine, metrics, options.rights).by_name()
    routes = [
        Route(
            row.path.replace("{id}", "{id:segment}"),
            Endpoint(front, row.name, handlers[row.name], row.scope, row.takes_body, row.slow, row.stores),
            methods=[row.method],
        )
        for row in ROUTES
    ]
    others = Starlette(routes=routes, exception_handlers={HTTPException: _not_ours(metrics)})
    others.router.redirect_slashes = False
    return Straight(others, routes)


def serve(app: ASGIApp, listener: socket.socket, on_ready: Callable[[], None], read_timeout_s: float = 10.0) -> None:
    """Answer on an already bound socket until SIGTERM or SIGINT; running requests are finished first.

    Args:
        on_ready: called once, when requests are answered.
        read_timeout_s: seconds in which a request's head must have come.
    """
    # uvicorn stops in good order, then hands the signal on as KeyboardInterrupt; being told to stop is no failure
    with contextlib.suppress(KeyboardInterrupt):
        Server(app, on_ready, read_timeout_s).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn, telling when it answers; `should_exit = True` stops it.

    Args:
        app: the service.
        on_ready: called once, when requests are answered.
        read_timeout_s: seconds in which a request's head must have come; a connection without one is closed.
    """

    def __init__(self, app: ASGIApp, on_ready: Callable[[], None], read_timeout_s: float = 10.0) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection.of(read_timeout_s),
                ws="none",
                log_config=None,  # of its own it would write plain text between our lines
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=10,
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def _not_ours(metrics: Metrics) -> Callable[[Request, Exception], Awaitable[Response]]:
    """What answers where there is no route, or no such method; counted and logged as any other refusal."""

    async def refused(request: Request, error: Exception) -> Response:
        started = time.perf_counter()
        if not isinstance(error, HTTPException):
            raise error
        request_id = request_id_of(request.scope["headers"])
        detail = f"{request.method} {request.url.path[:200]}: {error.detail}. GET /openapi.json lists what can be asked"
        headers = {"x-request-id": request_id.decode()}
        if error.status_code == 405:  # in its own header Starlette names the methods of the first route of this path alone
            matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
            headers["allow"] = ", ".join(sorted({method for route in matching for method in route.methods}))
        content = problem(error.status_code, detail, request_id)
        seconds = time.perf_counter() - started
        metrics.request(OTHER, error.status_code, seconds)
        log_call(OTHER, error.status_code, request_id, "", seconds)
        return Response(content, error.status_code, headers, "application/problem+json")

    return refused
