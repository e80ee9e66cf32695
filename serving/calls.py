"""One HTTP call from its headers to its reply: id, key, deadline, body, handler, counters, and a log line where it went wrong.

Plain ASGI; which call comes here is serving.app's business.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from serving.api_keys import ApiKeys
from serving.item_texts import as_json
from serving.logs import REQUEST_ID as ANSWERING
from serving.logs import loggable, steps
from serving.messages import Problem
from serving.metrics import Metrics
from serving.stepwise import between_others
from serving.turns import Turns
from towers.errors import RequestError, StorageError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

REQUEST_ID, TIMEOUT = "x-request-id", "x-request-timeout-ms"
LONGEST_TIMEOUT_MS = 600_000
WHOLE = "towers.whole"
"""Key of an ASGI scope; where it is there, so is the whole body, and no time is spent on timing how it is read."""

log = logging.getLogger("towers.serving")

_ENCODER = msgspec.json.Encoder(enc_hook=as_json)
_SAFE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_JSON, _PROBLEM = b"application/json", b"application/problem+json"
_CLOSE = ((b"connection", b"close"),)
_LATER = ((b"retry-after", b"1"),)
_WITH = {401: ((b"www-authenticate", b"Bearer"),), 415: ((b"accept-encoding", b"identity"),)}
"""Headers that go with a status."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler gets to see of a request.

    Attributes:
        params: the variable parts of the path, decoded.
    """

    params: Mapping[str, str]
    query: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent instead of JSON."""

    content: bytes
    media_type: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Call], object]


@dataclass(frozen=True, slots=True)
class Deadline:
    """When the caller stops waiting: seconds of `time.perf_counter`, None = never."""

    at: float | None

    def check(self) -> None:
        """Raises RequestError (408) once nobody waits for the answer any more: work that begins then helps nobody."""
        if self.at is not None and time.perf_counter() > self.at:
            raise self.passed()

    def passed(self) -> RequestError:
        """What is told then."""
        return RequestError(TIMEOUT, "the time that the caller gave has passed", 408)


@dataclass(frozen=True)
class Front:
    """What all endpoints share.

    Attributes:
        metrics: counts every call.
        keys: who may ask; None = everybody.
        max_body_bytes: largest body.
        access_log: a log line for every call, not only for those refused or failed.
        read_timeout_s: seconds in which a body must have come.
        turns: of calls that store something.
    """

    metrics: Metrics
    keys: ApiKeys | None = None
    max_body_bytes: int = 1_048_576
    access_log: bool = False
    read_timeout_s: float = 10.0
    turns: Turns = field(default_factory=Turns)


@dataclass(frozen=True)
class Endpoint:
    """An ASGI application that answers one kind of call: inline on the event loop, or in a thread where that would hold up others.

    Attributes:
        route: its name in metrics and logs.
        handler: from call to reply, or to the steps that end in one.
        scope: what the caller's key must allow; "" = nothing.
        takes_body: whether a body is read.
        slow: it reads or writes files, and runs in a thread.
        stores: it writes to a database, and takes its turn in a thread.
    """

    front: Front
    route: str
    handler: Handler
    scope: str = ""
    takes_body: bool = False
    slow: bool = False
    stores: bool = False

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = _Headers.of(scope["headers"])
        status, failed = 200, ""
        body: bytes | None = None
        extra: tuple[tuple[bytes, bytes], ...] = ()
        try:
            if self.front.keys is not None and self.scope:
                self.front.keys.check(headers.key, self.scope)
            deadline = Deadline(_deadline(headers.timeout, started))
            if not self.takes_body:
                body = b""
            elif headers.encoding:
                raise RequestError("content-encoding", "the body is encoded; expected it as it is (identity)", 415)
            else:
                wait_s = None if WHOLE in scope else self.front.read_timeout_s
                body = await _body(receive, headers.length, self.front.max_body_bytes, deadline, wait_s)
            deadline.check()
            ANSWERING.set(headers.request_id.decode())
            call = Call(_decoded(scope.get("path_params", {})), scope["query_string"].decode("latin-1"), body)
            if self.stores:
                found = await self.front.turns.take(deadline.check, partial(self.handler, call))
            else:
                found = await asyncio.to_thread(self.handler, call) if self.slow else self.handler(call)
                if isinstance(found, Generator):
                    found = await between_others(found, deadline.check)
            if isinstance(found, Reply):
                content, media_type, extra = found.content, found.media_type, found.headers
            else:
                content, media_type = _ENCODER.encode(found), _JSON
        except RequestError as error:
            status, media_type, failed = error.status, _PROBLEM, loggable(error.field)
            content = problem(status, str(error), headers.request_id, error.field)
            extra = _CLOSE if status == 408 and body is None else _WITH.get(status, ())
        except StorageError as error:
            status, media_type, failed, extra = 503, _PROBLEM, "storage", _LATER
            content = problem(status, str(error), headers.request_id)
            log.error("cannot be stored", extra={"reason": str(error)})
        except Exception as error:
            status, media_type, failed = 500, _PROBLEM, type(error).__name__
            content = problem(status, "an error of the service; it is in its log", headers.request_id)
            # frames without the message, which may hold what the caller sent
            log.error("failed", extra={"trace": steps(error.__traceback__)})
        seconds = time.perf_counter() - started
        self.front.metrics.request(self.route, status, seconds)
        if failed or self.front.access_log:
            log_call(self.route, status, headers.request_id, failed, seconds)
        await respond(send, status, content, media_type, headers.request_id, extra)


def log_call(route: str, status: int, request_id: bytes, failed: str, seconds: float) -> None:
    """A line that says how it went and nothing of what was asked: no path, no body, no detail. Of what the caller sent it holds the
    request id alone, which is there to be found in logs."""
    facts = {"route": route, "status": status, "request_id": request_id.decode(), "field": failed, "ms": round(1e3 * seconds, 3)}
    log.log(logging.ERROR if status >= 500 else logging.INFO, "call", extra=facts)


def problem(status: int, detail: str, request_id: bytes, named: str | None = None) -> bytes:
    """An RFC 9457 document."""
    return _ENCODER.encode(Problem(HTTPStatus(status).phrase, status, detail, field=named, request_id=request_id.decode()))


def request_id_of(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The caller's `x-request-id` where it is printable and short, else a new one."""
    return _Headers.of(headers).request_id


async def respond(
    send: Send, status: int, content: bytes, media_type: bytes, request_id: bytes, extra: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Send a whole reply."""
    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(content)), (b"x-request-id", request_id), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@dataclass(slots=True)
class _Headers:
    """The headers that matter, read in one pass."""

    request_id: bytes = b""
    key: bytes = b""
    timeout: bytes = b""
    length: bytes = field(default=b"")
    encoding: bytes = b""

    @classmethod
    def of(cls, headers: list[tuple[bytes, bytes]]) -> "_Headers":
        found = cls()
        for name, value in headers:
            if name == b"content-length":
                found.length = value
            elif name == b"x-request-id":
                found.request_id = value.rstrip()  # blanks after a value are none of it, and come with it
            elif name == b"x-request-timeout-ms":
                found.timeout = value.rstrip()
            elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                found.encoding = value
            elif name == b"x-api-key":
                found.key = value.rstrip()
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                found.key = value[7:].strip()
        if not _SAFE_ID.fullmatch(found.request_id):
            found.request_id = os.urandom(16).hex().encode()
        return found


def _decoded(params: Mapping[str, str]) -> Mapping[str, str]:
    """Parts of a path, which come percent-encoded, as text."""
    found = {}
    for name, value in params.items():
        try:
            found[name] = unquote_to_bytes(value.encode("latin-1")).decode()
        except UnicodeDecodeError:
            raise RequestError(name, "got bytes that are no UTF-8, expected percent-encoded UTF-8") from None
    return found


def _deadline(given: bytes, started: float) -> float | None:
    if not given:
        return None
    if not given.isdigit() or len(given) > 10 or not 1 <= int(given) <= LONGEST_TIMEOUT_MS:
        raise RequestError(TIMEOUT, f"got {given[:40].decode('latin-1')!r}, expected whole milliseconds from 1 to {LONGEST_TIMEOUT_MS}")
    return started + int(given) / 1000


async def _body(receive: Receive, declared: bytes, largest: int, deadline: Deadline, wait_s: float | None) -> bytes:
    """The whole body, refused before it is read where its declared length is too large, and once the caller's time or ours has passed.

    Args:
        wait_s: seconds in which it must have come; None = it has.
    """
    if declared.isdigit() and int(declared[:20]) > largest:
        raise _too_large(largest)
    if wait_s is None:
        return await _read(receive, largest)
    left_s = wait_s if deadline.at is None else deadline.at - time.perf_counter()
    try:
        async with asyncio.timeout(min(left_s, wait_s)):
            return await _read(receive, largest)
    except TimeoutError:
        if left_s < wait_s:
            raise deadline.passed() from None
        raise RequestError("body", f"it has not come whole in {wait_s:g} s", 408) from None


async def _read(receive: Receive, largest: int) -> bytes:
    message = await _received(receive)
    body: bytes = message.get("body", b"")
    chunks, size = [body], len(body)
    while message.get("more_body", False) and size <= largest:
        message = await _received(receive)
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
    if size > largest:
        raise _too_large(largest)
    return body if len(chunks) == 1 else b"".join(chunks)


async def _received(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":  # what came of the body may read like a whole one
        raise RequestError("body", "the connection ended before it had come whole", 400)
    return message


def _too_large(largest: int) -> RequestError:
    return RequestError("body", f"larger than {largest:,} bytes", 413)
