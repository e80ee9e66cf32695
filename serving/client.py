"""A client of the service for Python programs: one deadline for a call and its retries, typed replies. Standard library and msgspec.

client = Client("http://127.0.0.1:8000", key="...")
for item in client.recommend(user_id="42", k=10).items: ...
"""

import http.client
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from serving.messages import EventsAdded, Problem, Recommendations, SimilarItems
from serving.page_messages import BatchRecommendations, Reranked
from serving.people_messages import ConsentState, Held, Receipt
from towers.columns import REMOVAL

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0
_T = TypeVar("_T")


class ServiceError(Exception):
    """The service refused or failed; `problem` is its document (status 0: no answer came)."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.title}: {problem.detail}")
        self.problem = problem


class Client:
    """Calls a service. Safe to use from several threads: each has a connection of its own, kept open.

    Args:
        url: `http://host:port` or https.
        key: of the service's `serving.api_keys`, where it asks for one.
        timeout_s: for a whole call, retries included; told to the service too, which then does not begin what nobody waits for.
        retries: of calls that may be repeated without harm, after a refused or broken connection and after 503; the waits between them
            double, and are drawn at random so that callers do not come back all at once.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 1.0, retries: int = 3) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: got {url!r}, expected http://host:port or https://host:port")
        self._open = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._base = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._timeout_s = timeout_s
        self._retries = retries
        self._own = threading.local()

    def recommend(self, **request: Any) -> Recommendations:
        """One list; arguments as in `messages.RecommendRequest`. Raises ServiceError."""
        return self._call("POST", "/v1/recommend", request, Recommendations)

    def recommend_rows(self, rows: Sequence[Mapping[str, Any]], **request: Any) -> BatchRecommendations:
        """Several lists without duplicates across them; see `messages.BatchRequest`. Raises ServiceError."""
        return self._call("POST", "/v1/recommend:batch", {**request, "rows": rows}, BatchRecommendations)

    def rerank(self, items: Sequence[str], **request: Any) -> Reranked:
        """The caller's own candidates, ordered; see `messages.RerankRequest`. Raises ServiceError."""
        return self._call("POST", "/v1/rerank", {**request, "items": items}, Reranked)

    def add_events(self, events: Sequence[Mapping[str, Any]]) -> EventsAdded:
        """What people did; see `messages.Event`. Sent again after a failure: a service takes an event once. Raises ServiceError."""
        return self._call("POST", "/v1/events", {"events": events}, EventsAdded)

    def remove_from_history(self, user_id: str, item_ids: Sequence[str]) -> EventsAdded:
        """Take items out of a person's history: what was done with them until now counts no more. Raises ServiceError."""
        removals = [{"user_id": user_id, "item_id": item, "event_type": REMOVAL, "event_id": os.urandom(16).hex()} for item in item_ids]
        return self.add_events(removals)

    def similar_items(self, item_id: str, k: int = 20) -> SimilarItems:
        """Items like this one. Raises ServiceError."""
        return self._call("GET", f"/v1/items/{quote(item_id, safe='')}/similar?k={k}", None, SimilarItems)

    def consent(self, user_id: str) -> ConsentState:
        """What a person allows. Raises ServiceError."""
        return self._call("GET", f"{_person(user_id)}/consent", None, ConsentState)

    def decide(self, user_id: str, **granted: bool) -> ConsentState:
        """Tell what a person allows or refuses, by purpose (`train=False`); what they allow then. Raises ServiceError."""
        return self._call("PUT", f"{_person(user_id)}/consent", granted, ConsentState)

    def held(self, user_id: str) -> Held:
        """All that is held of a person. Raises ServiceError."""
        return self._call("GET", _person(user_id), None, Held)

    def forget(self, user_id: str) -> Receipt:
        """Remove all that is held of a person; keep the receipt's hash.

        It takes the longer the more the run holds, and a third of a second at least: call it of a client with a long `timeout_s`. Sent
        again after a failure; the receipt then says that nothing was found where the try before had removed it. Raises ServiceError.
        """
        return self._call("DELETE", _person(user_id), None, Receipt)

    def ready(self) -> dict[str, Any]:
        """Which model and index answer. Raises ServiceError."""
        return self._call("GET", "/health/ready", None, dict[str, Any])

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, path: str, document: object, kind: type[_T]) -> _T:
        content = None if document is None else msgspec.json.encode(document)
        until = time.monotonic() + self._timeout_s
        wait_s = _FIRST_WAIT_S
        for attempt in range(1 + self._retries):
            if attempt:
                time.sleep(min(random.uniform(wait_s / 2, wait_s), max(0.0, until - time.monotonic())))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            left_s = until - time.monotonic()
            if attempt and left_s <= 0:
                break
            status, body = self._once(method, path, content, until)
            if status not in (0, 503):
                break
        try:
            if status == 200:
                return msgspec.json.decode(body, type=kind)
            problem = msgspec.json.decode(body, type=Problem)
        except (msgspec.DecodeError, UnicodeDecodeError):  # of whatever stands between: a proxy's page
            problem = Problem("no answer" if not status else "unexpected answer", status, body[:200].decode("utf-8", "replace"))
        raise ServiceError(problem)

    def _once(self, method: str, path: str, content: bytes | None, until: float) -> tuple[int, bytes]:
        """Status and body; status 0 and the reason where no answer came."""
        fresh = getattr(self._own, "connection", None) is None
        left_s = max(until - time.monotonic(), 0.001)
        try:
            connection = self._connection(left_s)
            headers = {**self._headers, "x-request-timeout-ms": str(min(600_000, max(1, int(1000 * left_s))))}
            connection.request(method, self._base + path, content, headers)
            reply = connection.getresponse()
            return reply.status, reply.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            self._own.connection = None
            stale = isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError)
            if stale and not fresh:  # the service closes connections that were idle for long: not a failure, no wait
                return self._once(method, path, content, until)
            return 0, f"{type(error).__name__}: {error}".encode()

    def _connection(self, left_s: float) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._open(self._host, self._port, timeout=left_s)
        connection.timeout = left_s
        if connection.sock is not None:
            connection.sock.settimeout(left_s)
        return connection


def _person(user_id: str) -> str:
    return f"/v1/users/{quote(user_id, safe='')}"
