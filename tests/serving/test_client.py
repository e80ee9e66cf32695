"""The Python client against a real service, and against ones that fail in every way."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from serving.client import Client, ServiceError
from serving.people_messages import ConsentState
from serving.retriever import Retriever

OK = b'HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{"status":"ready"}'
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
PAGE = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 13\r\n\r\n<html></html>"


@contextmanager
def scripted(*answers: bytes | float | None) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads a request and gives the next answer; None closes without one, a number that many seconds later, b"" never
    answers."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            left = list(answers)
            while left:
                try:
                    connection, _ = listener.accept()
                except OSError:  # the test is over
                    return
                with connection:
                    while left and (asked := connection.recv(65_536)):
                        heard.append(asked)
                        answer = left.pop(0)
                        if answer is None or isinstance(answer, float):
                            time.sleep(answer or 0)
                            break
                        if not answer:
                            connection.recv(1)
                            break
                        connection.sendall(answer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_replies_are_the_retrievers(client: httpx.Client, retriever: Retriever) -> None:
    who = {"user_id": "user-5", "now": 1_728_000_000}
    expected = retriever.recommend(**who, k=5).items  # type: ignore[arg-type]
    with Client(str(client.base_url), timeout_s=10) as ours:
        assert ours.recommend(**who, k=5).items == expected
        assert ours.recommend_rows([{"k": 2}, {"k": 3}], **who).rows[1].items == expected[2:]
        assert ours.rerank([expected[1].item_id, expected[0].item_id], **who).items == expected[:2]
        assert ours.similar_items("a/b c", 3) == retriever.similar_items("a/b c", 3)
        assert ours.add_events([]).added == 0 and ours.ready()["items"] == 40
        with pytest.raises(ServiceError, match="k: got 0") as refused:
            ours.recommend(k=0)
    assert (refused.value.problem.status, refused.value.problem.field) == (422, "k")


def test_people_say_what_they_allow(client: httpx.Client) -> None:
    """By ids however odd; this service keeps no rows of them that could be shown or removed."""
    who = "a/b \u00fcn\u00ef?"
    with Client(str(client.base_url), timeout_s=10) as ours:
        told = ours.decide(who, train=False, marketing=False)
        assert told == ours.consent(who) == ConsentState(personalize=True, train=False, marketing=False, measure=True)
        assert client.get("/v1/users/a%2Fb%20%C3%BCn%C3%AF%3F/consent").json()["train"] is False
        with pytest.raises(ServiceError, match="profiling") as refused:
            ours.decide(who, profiling=True)
        assert refused.value.problem.status == 422
        for call in (ours.held, ours.forget):
            with pytest.raises(ServiceError, match="keeps no rows"):
                call(who)


@pytest.mark.parametrize("answers", [(BUSY, BUSY, OK), (None, OK), (BUSY, None, OK)])
def test_it_tries_again_after_503_and_broken_connections(answers: tuple[bytes | None, ...]) -> None:
    with scripted(*answers) as (url, heard), Client(url, timeout_s=5) as ours:
        assert ours.ready() == {"status": "ready"}
        assert len(heard) == len(answers)


def test_it_gives_up_after_its_retries_and_says_what_it_got() -> None:
    with scripted(BUSY, BUSY, BUSY, OK) as (url, heard), Client(url, timeout_s=5, retries=2) as ours, pytest.raises(ServiceError) as failed:
        ours.ready()
    assert failed.value.problem.status == 503 and len(heard) == 3


@pytest.mark.parametrize("answer", [PAGE, PAGE.replace(b"502 Bad Gateway", b"404 Not Found")])
def test_other_failures_are_final(answer: bytes) -> None:
    with scripted(answer, OK) as (url, heard), Client(url, timeout_s=5) as ours, pytest.raises(ServiceError) as failed:
        ours.ready()
    assert len(heard) == 1 and failed.value.problem.detail == "<html></html>"


def test_one_deadline_for_all_tries() -> None:
    with scripted(b"", b"", b"") as (url, heard), Client(url, timeout_s=0.3, retries=10) as ours:
        since = time.monotonic()
        with pytest.raises(ServiceError) as failed:
            ours.ready()
        assert 0.2 < time.monotonic() - since < 2 and failed.value.problem.status == 0
        told = [int(asked.lower().partition(b"x-request-timeout-ms: ")[2].split()[0]) for asked in heard]
    assert 0 < told[0] <= 300
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    with pytest.raises(ServiceError, match="ConnectionRefusedError"):
        Client(f"http://127.0.0.1:{closed}", timeout_s=0.2).ready()


def test_a_stale_connection_is_no_failure() -> None:
    """The service closed it between two calls; the second opens another, without using up a retry."""
    with scripted(OK, None, OK) as (url, heard), Client(url, timeout_s=5, retries=0) as ours:
        assert ours.ready() == ours.ready() == {"status": "ready"}
        assert len(heard) == 3


def test_a_connection_that_breaks_late_leaves_its_call_what_is_left() -> None:
    """The service dies while it answers, and what comes in its place does not: together that is still one call."""
    with scripted(OK, 0.3, b"") as (url, heard), Client(url, timeout_s=0.4, retries=0) as ours:
        ours.ready()
        since = time.monotonic()
        with pytest.raises(ServiceError) as failed:
            ours.ready()
        assert time.monotonic() - since < 0.6 and failed.value.problem.status == 0 and len(heard) == 3
        told = [int(asked.lower().partition(b"x-request-timeout-ms: ")[2].split()[0]) for asked in heard]
        assert told[2] <= 100


@pytest.mark.parametrize("body", [b"<html></html>", b'["ready"]', b"\xff\xfe", b'{"k": "\xff"}'])
def test_an_answer_of_something_else_is_told_as_such(body: bytes) -> None:
    """A proxy's page comes with status 200 too."""
    with scripted(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)) as (url, _), Client(url, timeout_s=5) as ours:
        with pytest.raises(ServiceError, match="unexpected answer") as failed:
            ours.ready()
        assert failed.value.problem.status == 200


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        Client(url)
