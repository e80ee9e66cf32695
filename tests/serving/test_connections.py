"""What a service says to callers who hold a connection and do not keep to HTTP, or to their own word."""

import json
import socket

import httpx


def said(client: httpx.Client, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes back, the connection being left open on this side."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20) as connection:
        connection.sendall(sent)
        reply = connection.makefile("rb")
        status = int(reply.readline().split()[1])
        lines = iter(lambda: reply.readline().decode().strip(), "")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return status, headers, reply.read(int(headers["content-length"]))


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
