"""Several rows on one page, and the caller's own candidates: over HTTP, against the single list."""

from typing import Any

import httpx
import pytest

from serving.retriever import Retriever

NOW = 1_728_000_000


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["item_id"] for item in items]


def test_rows_share_no_item_and_the_first_is_the_single_list(client: httpx.Client) -> None:
    body = {"user_id": "user-5", "now": NOW, "exclude": ["item-20"]}
    rows = [{"name": "for you", "k": 4}, {"name": "more", "k": 6}, {"k": 1000}]
    reply = client.post("/v1/recommend:batch", json={**body, "rows": rows})
    assert reply.status_code == 200, reply.text
    got = reply.json()
    single = client.post("/v1/recommend", json={**body, "k": 1000}).json()
    assert ids([item for row in got["rows"] for item in row["items"]]) == ids(single["items"])
    assert [(row["name"], row["returned"], row["k"]) for row in got["rows"][:2]] == [("for you", 4, 4), ("more", 6, 6)]
    assert got["rows"][2]["returned"] == single["returned"] - 10 and got["mode"] == "personalized"


def test_a_rows_own_context_counts_for_it_alone(client: httpx.Client) -> None:
    body = {"history": ["item-01"], "now": NOW, "context": {"hour": 3}, "exclude_seen": False}
    got = client.post("/v1/recommend:batch", json={**body, "rows": [{"k": 40, "context": {"budget": 90}}]}).json()
    single = client.post("/v1/recommend", json={**body, "context": {"hour": 3, "budget": 90}, "k": 40}).json()
    plain = client.post("/v1/recommend", json={**body, "k": 40}).json()
    assert ids(got["rows"][0]["items"]) == ids(single["items"]) != ids(plain["items"])


def test_a_stranger_gets_rows_of_popular_items(client: httpx.Client) -> None:
    got = client.post("/v1/recommend:batch", json={"user_id": "nobody", "rows": [{"k": 3}, {"k": 3}]}).json()
    popular = client.post("/v1/recommend", json={"user_id": "nobody", "k": 6}).json()
    assert ids(got["rows"][0]["items"] + got["rows"][1]["items"]) == ids(popular["items"])
    assert got["fallback"] == popular["fallback"] and got["mode"] == "fallback"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rows": []}, "rows"),
        ({"rows": [{}] * 51}, "rows"),
        ({"rows": [{}, {"k": 0}]}, "rows[1].k"),
        ({"rows": [{"k": 1001}]}, "rows[0].k"),
        ({"rows": [{"context": {"weather": "wet"}}]}, "rows[0].context.weather"),
        ({"rows": [{}, {"context": {"budget": "much"}}]}, "rows[1].context.budget"),
        ({"rows": [{"colour": 1}]}, "rows[0].colour"),
        ({}, "rows"),
        ({"rows": [{}], "k": 3}, "k"),
    ],
)
def test_rows_that_do_not_fit_name_the_field(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    reply = client.post("/v1/recommend:batch", json=body)
    assert (reply.status_code, reply.json()["field"]) == (422, field)


def test_candidates_are_scored_as_in_a_list(client: httpx.Client) -> None:
    body = {"user_id": "user-5", "now": NOW}
    everything = client.post("/v1/recommend", json={**body, "k": 1000, "exclude_seen": False}).json()["items"]
    chosen = everything[::-3]
    asked = ["item-07", *ids(chosen), "no such item", chosen[0]["item_id"]]  # hidden, unknown, repeated
    got = client.post("/v1/rerank", json={**body, "items": asked}).json()
    assert got["items"] == chosen[::-1] and got["unknown_items"] == ["no such item"] and got["k"] == len(asked)
    best = client.post("/v1/rerank", json={**body, "items": asked, "k": 2, "exclude": [chosen[-1]["item_id"]]}).json()
    assert best["items"] == chosen[-2:-4:-1] and best["returned"] == best["k"] == 2


def test_candidates_of_a_stranger_are_ordered_by_popularity(client: httpx.Client) -> None:
    popular = client.post("/v1/recommend", json={"k": 1000}).json()["items"]
    got = client.post("/v1/rerank", json={"items": ids(popular[5:20])[::-1]}).json()
    assert got["items"] == popular[5:20] and got["fallback"]["reason"] == "no_history"


def test_seen_candidates_stay_unless_told_otherwise(client: httpx.Client) -> None:
    body = {"history": ["item-01"], "items": ["item-01", "item-02"]}
    reply = client.post("/v1/rerank", json=body).json()
    assert reply["returned"] == 2 and reply["shortage"] is None
    assert client.post("/v1/rerank", json={**body, "k": 3}).json()["shortage"] == "items"
    assert ids(client.post("/v1/rerank", json={**body, "exclude_seen": True}).json()["items"]) == ["item-02"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": []}, "items"),
        ({"items": ["i"] * 501}, "items"),
        ({"items": ["i"], "k": 0}, "k"),
        ({"items": [""]}, "items[0]"),
        ({}, "items"),
    ],
)
def test_candidates_that_do_not_fit_name_the_field(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    reply = client.post("/v1/rerank", json=body)
    assert (reply.status_code, reply.json()["field"]) == (422, field)


def test_events_change_the_next_list(client: httpx.Client, retriever: Retriever) -> None:
    body = {"user_id": "somebody new", "k": 5}
    assert client.post("/v1/recommend", json=body).json()["mode"] == "fallback"
    event = {"user_id": "somebody new", "item_id": "item-03", "event_id": "e1", "event_type": "play"}
    sent = [client.post("/v1/events", json={"events": [event]}).json() for _ in range(2)]
    assert [reply["added"] for reply in sent] == [1, 0]
    got = client.post("/v1/recommend", json=body).json()
    assert got["mode"] == "personalized" and "item-03" not in ids(got["items"])
    refused = client.post("/v1/events", json={"events": [{**event, "event_id": "e2", "timestamp": 4_000_000_000}]})
    assert (refused.status_code, refused.json()["field"]) == (422, "events[0].timestamp")


def test_a_row_may_be_filtered_and_so_may_all(client: httpx.Client) -> None:
    labels = [{"field": "categories", "any_of": [label]} for label in ("drama", "comedy")]
    body = {"history": ["item-01"], "exclude_seen": False}
    got = client.post("/v1/recommend:batch", json={**body, "rows": [{"filter": [labels[0]], "k": 40}, {"k": 40}]}).json()["rows"]
    alone = client.post("/v1/recommend", json={**body, "k": 40, "filter": [labels[0]]}).json()["items"]
    assert ids(got[0]["items"]) == ids(alone) and alone and not set(ids(alone)) & set(ids(got[1]["items"]))
    both = client.post("/v1/recommend:batch", json={**body, "filter": [labels[1]], "rows": [{"filter": [labels[0]]}, {"k": 40}]}).json()[
        "rows"
    ]
    assert both[0]["items"] == [] and {label for item in both[1]["items"] for label in item["categories"]} == {"comedy"}
    kept = client.post("/v1/rerank", json={**body, "items": ids(alone + got[1]["items"]), "filter": [labels[0]]}).json()["items"]
    assert kept == alone
    wrong = {"rows": [{}, {"filter": [{"field": "colour", "any_of": ["red"]}]}]}
    assert client.post("/v1/recommend:batch", json=wrong).json()["field"] == "rows[1].filter[0].field"


def test_a_page_wants_no_more_than_can_be_made_at_once(client: httpx.Client) -> None:
    body, wide = {"user_id": "user-5", "now": NOW}, [{"k": 1000}] * 10
    assert client.post("/v1/recommend:batch", json={**body, "rows": wide}).status_code == 200
    many = client.post("/v1/recommend:batch", json={**body, "rows": [*wide, {"k": 1}]}).json()
    assert (many["status"], many["field"]) == (422, "rows") and "10,001" in many["detail"] and "10,000" in many["detail"]
    steered = {**body, "policy": {"diversity": 0.1}}
    assert client.post("/v1/recommend:batch", json={**steered, "rows": wide[:1]}).status_code == 200
    many = client.post("/v1/recommend:batch", json={**steered, "rows": [*wide[:1], {"k": 1}]}).json()
    assert (many["status"], many["field"]) == (422, "rows") and "1,001" in many["detail"] and "policy" in many["detail"]
