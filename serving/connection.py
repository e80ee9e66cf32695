"""A connection: uvicorn's, but a request's head is waited for only so long, may have only so many bytes and must name its host, and a
refusal of what is no HTTP is a problem document like every other. Trailers, which follow a body in chunks, count as headers.
"""

import asyncio
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.calls import WHOLE, problem, request_id_of

LONGEST_HEAD = 65_536
"""Bytes of a request's target and headers."""
_FRAMING = 16
"""Bytes that a chunk of a body may have around it."""


class Connection(HttpToolsProtocol):
    """See `of`, which sets how long it waits."""

    read_timeout_s = 10.0
    _timer: asyncio.TimerHandle | None = None
    _in_head = _in_message = False
    _refused = False
    _why = 400, "what was sent is not HTTP"
    _chunk = 0
    _since = 0
    """Bytes, without those of the body, that came after the data in which the head began: where in these it began is not known."""

    @classmethod
    def of(cls, read_timeout_s: float) -> type["Connection"]:
        """Connections that wait so many seconds for a head, counted from where nothing else is being answered."""
        return type(cls.__name__, (cls,), {"read_timeout_s": read_timeout_s})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio; uvicorn itself times a connection only after its first answer."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._refused:  # read on and dropped: closing while a caller still sends would take the answer away from it
            return
        self._chunk = len(data)
        super().data_received(data)
        if self._in_message:
            self._since += len(data)
            if self._since > LONGEST_HEAD and not self._refused:
                self._refuse(431, _TOO_LONG)
        if not self._refused:
            if not self._in_head and self._answering():
                self._stop()
            elif self._timer is None:
                self._wait()

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._in_head, self._in_message, self._since = True, True, -self._chunk

    def on_headers_complete(self) -> None:
        """See httptools; what is raised here ends in `send_400_response`."""
        names = [name for name, _ in self.headers]
        if names.count(b"host") != 1 and (b"host" in names or self.parser.get_http_version() == "1.1"):
            self._why = 400, f"the request has {names.count(b'host')} Host headers, expected one"
            raise ValueError(self._why)
        # the bytes are counted only where enough have come to be too many
        if max(self._chunk, self._chunk + self._since) > LONGEST_HEAD and self._head_bytes() > LONGEST_HEAD:
            self._why = 431, _TOO_LONG
            raise ValueError(self._why)
        super().on_headers_complete()
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        super().on_body(body)
        self._since -= len(body) + _FRAMING

    def on_message_complete(self) -> None:
        """See httptools."""
        super().on_message_complete()
        self._in_message = False
        self.scope[WHOLE] = True  # type: ignore[literal-required]

    def send_400_response(self, msg: str) -> None:
        """See uvicorn; the connection ends with it."""
        self._refuse(*self._why)

    def _refuse(self, status: int, detail: str) -> None:
        request_id = request_id_of(self.headers if self._in_head else [])
        content = problem(status, detail, request_id)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/problem+json\r\n".encode()
        head += b"content-length: %d\r\nx-request-id: %b\r\nconnection: close\r\n\r\n" % (len(content), request_id)
        self.transport.write(head + content)
        self._refused = True
        self._stop()
        if self.pipeline:
            self.transport.close()
            return
        if self._answering():  # its body is what is refused: it is told that nobody is there any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()
        self._wait()

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self.read_timeout_s, self._waited)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _waited(self) -> None:
        if self._answering() and not self._refused:  # the next head began before this answer was sent
            self._wait()
        else:
            self.transport.close()


_TOO_LONG = f"target and headers have more than {LONGEST_HEAD:,} bytes"
