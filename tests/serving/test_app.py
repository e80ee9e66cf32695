"""The service over a real socket: answers, errors that name the field, and calm beside hostile requests."""

import asyncio
import copy
import json
import re
import threading
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.app import build_app
from serving.bounds import Limits
from serving.calls import Call
from serving.engine import Engine
from serving.handlers import Handlers
from serving.metrics import Metrics
from serving.openapi import document
from serving.retriever import Retriever
from serving.routes import ROUTE_NAMES
from towers.encoder import Encoder
from towers.preprocess import Preprocessor
from towers.schema import Feature, make_schema
from towers.vocab import Vocabulary

DEEP = "[" * 1000 + "]" * 1000


def problem(reply: httpx.Response, status: int, field: str | None) -> dict[str, Any]:
    """The problem document of a refused request, checked."""
    assert reply.status_code == status, reply.text[:300]
    assert reply.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = reply.json()
    assert found["status"] == status and found["title"] and found["detail"]
    assert found.get("field") == field
    assert found["request_id"] == reply.headers["x-request-id"]
    return found


def test_the_reply_is_the_retrievers(client: httpx.Client, retriever: Retriever) -> None:
    body = {"user_id": "user-5", "context": {"hour": 5}, "k": 7, "now": 1_728_000_000}
    reply = client.post("/v1/recommend", json=body)
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/json"
    expected = retriever.recommend(**body)
    got = reply.json()
    assert [item["item_id"] for item in got["items"]] == [item.item_id for item in expected.items]
    assert [item["score"] for item in got["items"]] == [item.score for item in expected.items]
    assert got["mode"] == "personalized" and got["fallback"] is None and got["returned"] == got["k"] == 7
    assert got["model_version"] == got["index_version"] == "v1"
    assert got["recommendation_id"] != expected.recommendation_id


def test_an_anonymous_visitor_and_a_stranger(client: httpx.Client) -> None:
    visitor = client.post("/v1/recommend", json={"history": ["item-01", {"item_id": "item-02", "event_type": "play"}], "k": 3}).json()
    assert visitor["mode"] == "personalized" and not {"item-01", "item-02"} & {item["item_id"] for item in visitor["items"]}
    stranger = client.post("/v1/recommend", json={"user_id": "nobody", "k": 3}).json()
    assert stranger["fallback"] == {"strategy": "most_popular", "reason": "unknown_user"}
    everything = client.post("/v1/recommend", json={"k": 1000}).json()
    assert everything["returned"] == len(everything["items"]) == 39 and everything["k"] == 1000


@pytest.mark.parametrize("item_id", ["item-01", "a/b c", "a/similar", "ünï-код-日本", "100%", "?k=1"])
def test_similar_items_of_odd_ids(client: httpx.Client, retriever: Retriever, item_id: str) -> None:
    reply = client.get(f"/v1/items/{quote(item_id, safe='')}/similar", params={"k": 4})
    assert reply.status_code == 200, reply.text
    got = reply.json()
    assert got["item_id"] == item_id and got["returned"] == 4
    assert [item["item_id"] for item in got["items"]] == [item.item_id for item in retriever.similar_items(item_id, 4).items]


@pytest.mark.parametrize("path", ["/v1/items/line\nbreak/similar", "/v1/items/break\n", "/v1/users/line\n\x0bbreak/consent"])
def test_an_id_may_hold_line_breaks(client: httpx.Client, path: str) -> None:
    """They reach the handler, as any other id does, instead of the answer to a path that is not there."""
    reply = client.request("DELETE" if path.endswith("\n") else "GET", quote(path))
    plain = client.request("DELETE" if path.endswith("\n") else "GET", quote(path.replace("\n", "-").replace("\x0b", "-")))
    assert reply.status_code == plain.status_code
    assert "GET /openapi.json" not in reply.text


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/v1/items/nope/similar", 404, "id"),
        ("/v1/items//similar", 404, "id"),
        ("/v1/items/%00/similar", 404, "id"),
        ("/v1/items/" + "x" * 5000 + "/similar", 404, "id"),
        ("/v1/items/item-01/similar?k=0", 422, "k"),
        ("/v1/items/item-01/similar?k=-1", 422, "k"),
        ("/v1/items/item-01/similar?k=1000000000", 422, "k"),
        ("/v1/items/item-01/similar?k=ten", 422, "k"),
        ("/v1/items/item-01/similar?k=" + "9" * 5000, 422, "k"),
        ("/v1/items/item-01/similar?kk=1", 422, "kk"),
        ("/v1/nothing", 404, None),
        ("/v1/recommend", 405, None),
    ],
)
def test_gets_that_are_refused(client: httpx.Client, path: str, status: int, field: str | None) -> None:
    problem(client.get(path), status, field)


def test_other_methods_are_refused_with_what_is_allowed(client: httpx.Client) -> None:
    assert client.delete("/v1/recommend").headers["allow"] == "POST"
    problem(client.post("/health/live"), 405, None)


HOSTILE = [
    (b"", 400, "body"),
    (b"{", 400, "body"),
    (b'{"user_id": "\xff"}', 400, "body"),
    (b'{"k": NaN}', 422, "k"),
    (b'{"k": 1000000000}', 422, "k"),
    (b'{"k": 0}', 422, "k"),
    (b'{"k": -1}', 422, "k"),
    (b'{"k": ' + b"9" * 5000 + b"}", 422, "k"),
    (b'{"history": [{"item_id": "a", "timestamp": NaN}]}', 422, "history[0].timestamp"),
    (json.dumps({"history": ["i"] * 100_000}).encode(), 422, "history"),
    (json.dumps({"exclude": ["i"] * 501}).encode(), 422, "exclude"),
    (json.dumps({"less_like": ["i"] * 21}).encode(), 422, "less_like"),
    (b'{"explain": "yes"}', 422, "explain"),
    (f'{{"unknown": {DEEP}}}'.encode(), 422, "unknown"),
    (DEEP.encode(), 422, "body"),
    (b'{"context": {"budget": "much"}}', 422, "context.budget"),
    (b'{"context": {"weather": "wet"}}', 422, "context.weather"),
    (b'{"context": {"hour": ' + b"9" * 5000 + b"}}", 422, "context.hour"),
    (b'{"context": {"budget": [' + b"9" * 5000 + b"]}}", 422, "context.budget"),
    (b'{"user_id": "' + b"u" * 10_000_000 + b'"}', 413, "body"),
]


@pytest.mark.parametrize(("body", "status", "field"), HOSTILE, ids=[f"{body[:30]!r}-{len(body)}" for body, _, _ in HOSTILE])
def test_hostile_bodies_name_the_field(client: httpx.Client, body: bytes, status: int, field: str) -> None:
    problem(client.post("/v1/recommend", content=body), status, field)


def test_a_large_body_without_a_length_is_cut_off(client: httpx.Client) -> None:
    problem(client.post("/v1/recommend", content=(b"x" * 65_536 for _ in range(160))), 413, "body")


def test_deep_nesting_in_an_open_field(client: httpx.Client) -> None:
    reply = client.post("/v1/recommend", content=f'{{"context": {{"hour": {DEEP}}}}}')
    assert reply.status_code == 422 and reply.json()["field"] in ("context", "context.hour")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = [
    "user_id",
    "history",
    "context",
    "preferences",
    "k",
    "exclude",
    "exclude_seen",
    "filter",
    "less_like",
    "explain",
    "candidate_items",
    "policy",
    "now",
    "personalize",
    "surface",
    "channel",
    "unknown",
]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(names), json_values, max_size=3).map(json.dumps) | st.text(max_size=40))
def test_no_body_is_our_bug(client: httpx.Client, body: str) -> None:
    reply = client.post("/v1/recommend", content=body.encode("utf-8", "surrogatepass"))
    assert reply.status_code in (200, 400, 422), reply.text[:300]
    if reply.status_code != 200:
        assert reply.json()["field"]


def test_others_are_undisturbed_by_hostile_requests(client: httpx.Client) -> None:
    body = {"user_id": "user-5", "k": 5, "now": 1_728_000_000}
    expected = [item["item_id"] for item in client.post("/v1/recommend", json=body).json()["items"]]
    stop = threading.Event()

    def attack() -> None:
        with httpx.Client(base_url=client.base_url, timeout=10, trust_env=False) as attacker:
            while not stop.is_set():
                for hostile, _, _ in HOSTILE:
                    attacker.post("/v1/recommend", content=hostile)

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        for _ in range(60):
            reply = client.post("/v1/recommend", json=body)
            assert reply.status_code == 200 and [item["item_id"] for item in reply.json()["items"]] == expected
    finally:
        stop.set()
        attacker.join(20)


def test_our_own_bug_tells_nothing_but_its_id(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(request: object) -> None:
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr(retriever, "answer", broken)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(build_app(Engine(retriever)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as inside:
            return await inside.post("/v1/recommend", json={}, headers={"x-request-id": "mine"})

    reply = asyncio.run(ask())
    assert problem(reply, 500, None)["request_id"] == "mine"
    assert "secret" not in reply.text and reply.headers.get_list("x-request-id") == ["mine"]


def test_request_ids_are_echoed_or_made(client: httpx.Client) -> None:
    assert client.get("/health/live", headers={"x-request-id": "abc-123"}).headers["x-request-id"] == "abc-123"
    made = {client.get("/health/live").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    for unsafe in ("with space", "x" * 200):
        assert client.get("/health/live", headers={"x-request-id": unsafe}).headers["x-request-id"] != unsafe
    refused = client.post("/v1/recommend", content=b"{", headers={"x-request-id": "mine"})
    assert problem(refused, 400, "body")["request_id"] == "mine"


def test_health(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready", "model_version": "v1", "index_version": "v1", "items": 40}


def test_the_start_page_and_the_document(client: httpx.Client, retriever: Retriever) -> None:
    served = client.get("/openapi.json").json()
    assert served == document(retriever.limits, retriever.encoder.preprocessor)
    posts = {"/v1/recommend", "/v1/recommend:batch", "/v1/rerank", "/v1/events"}
    others = {"/v1/items/{id}", "/v1/items/{id}/similar", "/v1/users/{id}", "/v1/users/{id}/consent"}
    assert set(served["paths"]) == {*posts, *others, "/health/live", "/health/ready", "/metrics"}
    assert all(f'"#/components/schemas/{name}"' in json.dumps(served) for name in served["components"]["schemas"])
    asked = served["components"]["schemas"]["RecommendRequest"]["properties"]
    assert asked["k"]["maximum"] == retriever.limits.max_k and set(asked) == set(names) - {"unknown"}
    assert set(asked["context"]["properties"]) == {"hour", "budget"} and asked["context"]["additionalProperties"] is False
    assert asked["context"]["properties"]["hour"]["examples"][:2] == ["0", "1"]
    assert asked["preferences"]["anyOf"][1]["properties"]["likes"]["items"]["examples"] == ["comedy", "drama", "news"]
    fewer = document(Limits(max_k=5), retriever.encoder.preprocessor)
    assert fewer["components"]["schemas"]["RecommendRequest"]["properties"]["k"]["maximum"] == 5


def test_the_document_tells_no_ids_and_nothing_sensitive() -> None:
    features = [
        Feature("shop", "id", "context"),
        Feature("mood", "categorical", "context", sensitive=True, purposes=("personalize",)),
        Feature("hour", "categorical", "context"),
    ]
    fitted = Preprocessor(make_schema(features, "time", {}), {name: Vocabulary.fit(["x"]) for name in ("shop", "mood", "hour")}, {})
    asked = document(Limits(), fitted)["components"]["schemas"]["RecommendRequest"]["properties"]["context"]["properties"]
    assert {name: facts.get("examples") for name, facts in asked.items()} == {"shop": None, "mood": None, "hour": ["x"]}


def test_the_start_page_asks_nobody_else(client: httpx.Client) -> None:
    """All it runs is written in it and allowed by its hash, so nothing injected would run; and it names no other address."""
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "http://" not in page.text and "https://" not in page.text
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        content = page.text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        assert policy[f"{tag}-src"] == f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
    markup = page.text.partition("<script>")[0] + page.text.partition("</script>")[2]
    assert not re.search(r"\s(on[a-z]+|style)=", markup)
    assert "innerHTML" not in page.text and "eval(" not in page.text
    # without it, `display` of a class or an element shows what is hidden: the field for a key, where a service has none
    assert 'id="keyed" hidden' in page.text and "[hidden] { display: none !important; }" in page.text
    for path in ("/v1/recommend", "/health/ready", "/openapi.json"):
        assert f'"{path}"' in page.text


def test_the_document_is_of_the_bundle_that_answers_now(retriever: Retriever) -> None:
    fitted, answering = retriever.encoder.preprocessor, Engine(retriever)
    handlers = Handlers(answering, Metrics(ROUTE_NAMES))

    def declared() -> set[str]:
        served = json.loads(handlers.openapi(Call({}, "", b"")).content)
        return set(served["components"]["schemas"]["RecommendRequest"]["properties"]["context"]["properties"])

    assert declared() == {"hour", "budget"}
    other, kept = copy.copy(retriever), tuple(f for f in fitted.schema.features if f.name != "hour")
    schema = replace(fitted.schema, features=kept)
    other.encoder = Encoder(Preprocessor(schema, fitted.vocabularies, fitted.numbers), retriever.encoder.runtime, retriever.encoder.length)
    answering.retriever = other
    assert declared() == {"budget"}
