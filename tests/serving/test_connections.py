"""What a service says to callers who hold a connection and do not keep to HTTP, or to their own word."""

import json
import logging
import socket

import httpx
import pytest

from serving.logs import JsonLines


def said(client: httpx.Client, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes back, the connection being left open on this side."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20) as connection:
        connection.sendall(sent)
        reply = connection.makefile("rb")
        status = int(reply.readline().split()[1])
        lines = iter(lambda: reply.readline().decode().strip(), "")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return status, headers, reply.read(int(headers["content-length"]))


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
