"""What a service says to callers who hold a connection and do not keep to HTTP, or to their own word."""

import asyncio
import gzip
import itertools
import json
import logging
import socket
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest

from serving.app import build_app
from serving.connection import LONGEST_HEAD
from serving.engine import Engine
from serving.logs import JsonLines
from serving.retriever import Retriever
from tests.serving.conftest import answering


def said(client: httpx.Client, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes back, the connection being left open on this side."""
    with connected(client) as connection:
        connection.sendall(sent)
        return answer(connection)


def connected(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20)


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The next that comes; what comes after it stays in the connection."""
    with connection.makefile("rb", buffering=0) as reply:
        status = int(reply.readline().split()[1])
        lines = iter(lambda: reply.readline().decode().strip(), "")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = b""
        while len(content) < int(headers["content-length"]):
            content += reply.read(int(headers["content-length"]) - len(content)) or b""
        return status, headers, content


@pytest.mark.parametrize(
    "sent", [b"no HTTP", b"GET /v1/users/\xc3\xa9 HTTP/1.1", b"GET / HTTP/1.1\r\ncontent-length: few", b"GET / HTTP/9.9"]
)
def test_what_is_no_http_is_told_so_like_any_other_problem(client: httpx.Client, sent: bytes) -> None:
    status, headers, content = said(client, sent + b"\r\n\r\n")
    assert (status, headers["content-type"], headers["connection"]) == (400, "application/problem+json", "close")
    problem = json.loads(content)
    assert problem["status"] == 400 and problem["detail"] and problem["request_id"] == headers["x-request-id"]


def test_what_libraries_log_is_json_without_the_values_in_it() -> None:
    secret = "somebody@example.org"
    try:
        raise ValueError(secret)
    except ValueError as error:
        failed = (ValueError, error, error.__traceback__)
    records = [
        logging.LogRecord("uvicorn.error", logging.WARNING, __file__, 1, "odd: %s", (secret,), None),
        logging.LogRecord("asyncio", logging.ERROR, __file__, 1, f"never retrieved\nfuture: <{secret}>", None, failed),
        logging.LogRecord("towers.serving", logging.ERROR, __file__, 1, "keeping up to date failed", None, failed),
    ]
    lines = [JsonLines().format(record) for record in records]
    assert secret not in "".join(lines) and not any("\n" in line for line in lines)
    told = [json.loads(line) for line in lines]
    assert [line["event"] for line in told] == ["odd: %s", "never retrieved", "keeping up to date failed"]
    assert [line.get("logger") for line in told] == ["uvicorn.error", "asyncio", None]
    assert all(line["error"] == "ValueError" and "test_what_libraries" in line["trace"][0] for line in told[1:])


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_the_caller_waits(client: httpx.Client) -> None:
    head = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\nx-request-timeout-ms: 40\r\n"
    for sent in (
        head + b'content-length: 100\r\n\r\n{"k"',
        head + b"content-length: 100\r\n\r\n",
        head + b'transfer-encoding: chunked\r\n\r\n4\r\n{"k"\r\n',
    ):
        status, headers, content = said(client, sent)
        assert (status, headers["content-type"]) == (408, "application/problem+json")
        problem = json.loads(content)
        assert (problem["status"], problem["field"]) == (408, "x-request-timeout-ms")
        assert problem["request_id"] == headers["x-request-id"]


def test_who_sends_no_head_or_half_of_one_is_cut_off(retriever: Retriever) -> None:
    live = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    with answering(retriever, head_s=0.05) as hasty:
        for sent in (b"", b"GET /health", live[:-2], b"\r\n", live + live[:-2]):
            with connected(hasty) as connection, connection.makefile("rb") as reply:
                connection.sendall(sent)
                assert reply.read().count(b"HTTP/1.1") <= sent.count(live), sent


def test_who_sends_half_a_body_is_told_so_and_cut_off(retriever: Retriever) -> None:
    halves = (b"content-length: 100\r\n\r\n", b'content-length: 100\r\n\r\n{"k"', b'transfer-encoding: chunked\r\n\r\n4\r\n{"k"\r\n')
    with answering(retriever, body_s=0.05) as hasty:
        for half, timeout in itertools.product(halves, (b"", b"x-request-timeout-ms: 60000\r\n")):
            with connected(hasty) as connection:
                connection.sendall(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\n" + timeout + half)
                status, headers, content = answer(connection)
                assert (status, headers["connection"], json.loads(content)["field"]) == (408, "close", "body")
                assert connection.recv(1) == b""


def test_a_head_may_have_so_many_bytes(client: httpx.Client) -> None:
    def get(length: int, end: bytes = b"\r\n\r\n") -> bytes:
        return b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\nx-much: " + b"a" * length + end

    assert said(client, get(60_000))[0] == 200
    body = b'{"k": 1}' + b" " * LONGEST_HEAD
    post = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    assert said(client, post)[0] == 200
    with connected(client) as connection:
        connection.sendall(post + get(60_000))  # the second head begins in the chunk that the first body ends in
        assert [answer(connection)[0] for _ in range(2)] == [200, 200]
    many = b"GET /health/live HTTP/1.1\r\nhost: x\r\n" + b"x-much: a\r\n" * 10_000 + b"\r\n"
    for sent in (get(LONGEST_HEAD), get(1_000_000), get(1_000_000, end=b""), many, b"GET /" + b"a" * LONGEST_HEAD + get(1)[16:]):
        status, headers, content = said(client, sent)
        assert (status, headers["content-type"], headers["connection"]) == (431, "application/problem+json", "close")
        problem = json.loads(content)
        assert problem["status"] == 431 and problem["request_id"] == headers["x-request-id"]
    assert json.loads(said(client, get(LONGEST_HEAD))[2])["request_id"] == "mine"


def test_trailers_count_as_headers_and_the_body_and_its_chunks_do_not(client: httpx.Client) -> None:
    head = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b'8\r\n{"k": 1}\r\n' + b"1\r\n \r\n" * 50_000
    assert said(client, head + chunks + b"0\r\nx-sum: 1\r\n\r\n")[0] == 200
    status, headers, content = said(client, head + b'8\r\n{"k": 1}\r\n0\r\nx-sum: ' + b"1" * 1_000_000)
    assert (status, headers["connection"], json.loads(content)["status"]) == (431, "close", 431)


def test_half_a_body_that_reads_like_a_whole_one_is_not_answered(retriever: Retriever) -> None:
    """Its caller went: what it would have asked is not done."""

    async def gone() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    messages: list[dict[str, Any]] = [{"type": "http.request", "body": b'{"k": 1}', "more_body": True}, {"type": "http.disconnect"}]
    sent: list[MutableMapping[str, Any]] = []
    scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "raw_path": b"/v1/recommend", "query_string": b"", "headers": []}
    asyncio.run(build_app(Engine(retriever))(scope, gone, send))
    assert sent[0]["status"] == 400


def test_a_request_names_its_host_once(client: httpx.Client) -> None:
    for version, hosts, expected in (
        (b"1.1", b"", 400),
        (b"1.1", b"host: x\r\nHost: y\r\n", 400),
        (b"1.1", b"HOST: x\r\n", 200),
        (b"1.0", b"", 200),
    ):
        status, headers, content = said(client, b"GET /health/live HTTP/%b\r\n%b\r\n" % (version, hosts))
        assert status == expected, (version, hosts)
        if status == 400:
            assert headers["content-type"] == "application/problem+json" and "Host" in json.loads(content)["detail"]


def test_a_body_is_sent_as_it_is(client: httpx.Client) -> None:
    body = b'{"k": 1}'
    for path in ("/v1/recommend", "/v1/events"):
        refused = client.post(path, content=gzip.compress(body), headers={"content-encoding": "gzip"})
        assert (refused.status_code, refused.json()["field"]) == (415, "content-encoding")
        assert refused.headers["accept-encoding"] == "identity"
    assert client.post("/v1/recommend", content=body, headers={"content-encoding": "Identity"}).status_code == 200


def test_a_query_parameter_is_given_once(client: httpx.Client) -> None:
    for query in ("k=1&k=2", "k=1&k=1"):
        refused = client.get(f"/v1/items/item-01/similar?{query}")
        assert (refused.status_code, refused.json()["field"]) == (422, "k")
