"""The recipe: who gets which list and why, compared with scoring every item by hand."""

from typing import Any

import numpy as np
import pytest

from serving.bounds import Limits
from serving.messages import Recommendations
from serving.retriever import Retriever
from towers.bundle import publish
from towers.encoder import Encoder, UserRow
from towers.errors import ConfigError, RequestError
from towers.identity import UserKeys
from towers.runtime import TorchRuntime

DAY_S = 86_400
NOW_S = 20_000 * DAY_S
HIDDEN, UNTRAINED, LENGTH = "item-07", "item-08", 6


def ids(reply: Recommendations) -> list[str]:
    return [item.item_id for item in reply.items]


def by_hand(world: Any, row: UserRow, without: set[str], k: int) -> list[str]:
    """All items scored by the torch towers, sorted in Python."""
    encoder = Encoder(world.preprocessor, TorchRuntime(world.model), LENGTH)
    item_ids = world.catalog["item_id"].to_pylist()
    vectors_ID = encoder.items({"item_id": item_ids, "categories": world.catalog["categories"].to_pylist()}, len(item_ids))
    scores = vectors_ID @ encoder.users([row]).vectors_BHD[0, 0]
    ranked = sorted(range(len(item_ids)), key=lambda i: (-scores[i], i))
    return [item_ids[i] for i in ranked if item_ids[i] not in without | {HIDDEN}][:k]


def stored(world: Any, user: str) -> dict[str, Any]:
    items = world.users[user]
    times = [(NOW_S - DAY_S * (len(items) - i)) * 1_000_000 for i in range(len(items))]
    return {"history_items": items, "history_events": ["play"] * len(items), "history_timestamps": times, "now": NOW_S * 1_000_000}


@pytest.mark.parametrize("user", ["user-0", "user-4", "user-11", "ünï/user"])
def test_a_known_user_gets_the_exact_list(world: Any, retriever: Retriever, user: str) -> None:
    reply = retriever.recommend(user_id=user, k=10, now=NOW_S)
    assert reply.mode == "personalized" and reply.fallback is None
    assert ids(reply) == by_hand(world, UserRow(**stored(world, user)), set(world.users[user]), 10)


def test_context_and_live_history_follow_the_stored_one(world: Any, retriever: Retriever) -> None:
    live = [{"item_id": "item-20", "event_type": "skip", "timestamp": NOW_S - 60}, {"item_id": "item-21", "timestamp": NOW_S - 120}]
    reply = retriever.recommend(user_id="user-4", history=live, context={"hour": 5, "budget": 30}, k=10, now=NOW_S)
    row = stored(world, "user-4")
    row["history_items"] = [*row["history_items"], "item-21", "item-20"]  # in time order, not in the order sent
    row["history_events"] = [*row["history_events"], "interaction", "skip"]
    row["history_timestamps"] = [*row["history_timestamps"], (NOW_S - 120) * 1_000_000, (NOW_S - 60) * 1_000_000]
    assert ids(reply) == by_hand(world, UserRow(**row, context={"hour": 5, "budget": 30}), set(row["history_items"]), 10)
    assert reply.unknown_history_items == 0


@pytest.mark.parametrize("asker", [{"user_id": "user-4"}, {}], ids=["personalized", "fallback"])
def test_filters_and_candidates(world: Any, retriever: Retriever, asker: dict[str, str]) -> None:
    whole = ids(retriever.recommend(**asker, k=1000, now=NOW_S))
    labels = dict(zip(world.catalog["item_id"].to_pylist(), world.catalog["categories"].to_pylist(), strict=True))
    drama = [{"field": "categories", "any_of": ["drama"]}]
    expected = [item for item in whole if "drama" in (labels[item] or [])]
    assert len(expected) > 3
    assert ids(retriever.recommend(**asker, k=1000, filter=drama, now=NOW_S)) == expected
    rest = [{"field": "categories", "none_of": ["drama"]}, {"field": "created_at", "at_least": NOW_S, "below": NOW_S + 1}]
    assert ids(retriever.recommend(**asker, k=1000, filter=rest, now=NOW_S)) == [item for item in whole if item not in expected]
    chosen = ["item-20", "nobody knows", whole[0], HIDDEN, "item-20"]
    assert ids(retriever.recommend(**asker, candidate_items=chosen, now=NOW_S)) == [whole[0], "item-20"]
    assert ids(retriever.recommend(**asker, candidate_items=[], now=NOW_S)) == []
    assert ids(retriever.recommend(**asker, filter=[{"field": "categories", "any_of": ["opera"]}], now=NOW_S)) == []
    assert ids(retriever.recommend(**asker, k=1, filter=drama, exclude=expected[:2], now=NOW_S)) == expected[2:3]


@pytest.mark.parametrize(
    ("clause", "field"),
    [
        ({"field": "colour", "any_of": ["red"]}, "filter[0].field"),
        ({"field": "categories"}, "filter[0]"),
        ({"field": "categories", "any_of": []}, "filter[0].any_of"),
        ({"field": "categories", "any_of": ["x"] * 257}, "filter[0].any_of"),
        ({"field": "categories", "any_of": [{"and": []}]}, "filter[0].any_of[0]"),
        ({"field": "categories", "like": "x"}, "filter[0].like"),
        ({"any_of": ["x"]}, "filter[0].field"),
    ],
)
def test_filters_that_cannot_be_read(retriever: Retriever, clause: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        retriever.recommend(user_id="user-4", filter=[clause])
    assert caught.value.field == field
    with pytest.raises(RequestError) as caught:
        retriever.recommend(filter=[{"field": "categories", "any_of": ["drama"]}] * 17)
    assert caught.value.field == "filter"


def test_each_signal_moves_the_list(retriever: Retriever) -> None:
    history = ["item-01", "item-02", "item-03"]
    plain = [item.score for item in retriever.recommend(history=history, k=10, now=NOW_S).items]
    for change in (
        {"context": {"hour": 5}},
        {"context": {"budget": 90}},
        {"preferences": ["drama"]},
        {"history": [*history, "item-04"]},
        {"history": [{"item_id": item, "event_type": kind} for item, kind in zip(history, ("play", "skip", "skip"), strict=True)]},
    ):
        changed = retriever.recommend(**{"history": history, "k": 10, "now": NOW_S, **change})
        assert [item.score for item in changed.items] != plain, change


def test_only_the_newest_events_reach_the_tower_and_all_are_seen(retriever: Retriever) -> None:
    old, new = [f"item-{i:02d}" for i in range(20, 30)], [f"item-{i:02d}" for i in range(1, 1 + LENGTH)]
    long, short = (retriever.recommend(history=events, k=100, exclude_seen=False) for events in ([*old, *new], new))
    assert [item.score for item in long.items] == [item.score for item in short.items]
    seen = retriever.recommend(history=[*old, *new], k=100)
    assert not set(ids(seen)) & {*old, *new}


@pytest.mark.parametrize(
    ("request_fields", "mode", "reason"),
    [
        ({}, "fallback", "no_history"),
        ({"user_id": "nobody"}, "fallback", "unknown_user"),
        ({"user_id": "empty"}, "fallback", "no_history"),
        ({"history": ["who?", UNTRAINED]}, "fallback", "unknown_history_items"),
        ({"context": {"hour": 5}}, "fallback", "no_history"),
        ({"preferences": ["no such category"]}, "fallback", "unknown_preferences"),
        ({"preferences": ["drama"]}, "cold", None),
        ({"user_id": "nobody", "preferences": {"likes": ["drama"]}}, "cold", None),
        ({"user_id": "likes-only"}, "cold", None),
        ({"history": ["who?"], "preferences": ["drama"]}, "cold", None),
        ({"user_id": "nobody", "history": ["item-01"]}, "personalized", None),
        ({"history": ["item-01", "who?"]}, "personalized", None),
    ],
)
def test_the_mode_is_said(retriever: Retriever, request_fields: dict[str, Any], mode: str, reason: str | None) -> None:
    reply = retriever.recommend(**request_fields, k=5)
    assert reply.mode == mode and len(reply.items) == 5
    if reason is None:
        assert reply.fallback is None
    else:
        assert reply.fallback is not None
        assert (reply.fallback.strategy, reply.fallback.reason) == ("most_popular", reason)


def test_unknown_history_items_are_counted_among_the_events_used(retriever: Retriever) -> None:
    assert retriever.recommend(history=["item-01", "who?", UNTRAINED]).unknown_history_items == 2
    assert retriever.recommend(history=["who?", *["item-01"] * LENGTH]).unknown_history_items == 0


def test_what_was_declared_speaks_as_if_there_were_no_events_of_unknown_items(retriever: Retriever) -> None:
    told, beside = (retriever.recommend(preferences=["drama"], history=history, k=5) for history in ([], ["who?", UNTRAINED]))
    scores, others = ([item.score for item in reply.items if item.item_id != UNTRAINED][:4] for reply in (told, beside))
    assert scores == others
    assert beside.mode == "cold" and beside.unknown_history_items == 2


def test_a_retriever_without_histories_says_so(world: Any, retriever: Retriever) -> None:
    without = Retriever.open(world.bundle)
    reply = without.recommend(user_id="user-5", k=3)
    assert reply.fallback is not None and reply.fallback.reason == "no_user_histories"
    assert without.recommend(user_id="user-5", history=["item-01"], k=3).mode == "personalized"


@pytest.mark.parametrize("request_fields", [{}, {"history": ["item-01"]}, {"preferences": ["drama"]}, {"user_id": "user-11"}])
def test_replies_are_sorted_finite_and_without_what_must_not_be_shown(
    world: Any, retriever: Retriever, request_fields: dict[str, Any]
) -> None:
    excluded = ["a/b c", "item-30", "not in the catalogue"]
    reply = retriever.recommend(**request_fields, k=1000, exclude=excluded, exclude_seen=False)
    found, scores = ids(reply), [item.score for item in reply.items]
    everything = set(world.catalog["item_id"].to_pylist())
    assert sorted(found) == sorted(everything - {HIDDEN, *excluded})
    assert scores == sorted(scores, reverse=True) and np.isfinite(scores).all()
    assert (reply.returned, reply.k) == (len(found), 1000)


def test_titles_and_categories_come_from_the_catalogue(world: Any, retriever: Retriever) -> None:
    facts = {row["item_id"]: row for row in world.catalog.to_pylist()}
    for item in retriever.recommend(history=["item-01"], k=100).items:
        assert item.title == facts[item.item_id]["title"]
        assert item.categories == (facts[item.item_id]["categories"] or [])


def test_similar_items_equal_scoring_by_hand(world: Any, retriever: Retriever, bundle: Any) -> None:
    item_ids = world.catalog["item_id"].to_pylist()
    vectors_ID = bundle.item_vectors()
    for item_id in ("item-01", "a/b c", HIDDEN, UNTRAINED):
        row = item_ids.index(item_id)
        scores = vectors_ID @ vectors_ID[row]
        ranked = [item_ids[i] for i in np.argsort(-scores, kind="stable") if item_ids[i] not in (item_id, HIDDEN)]
        reply = retriever.similar_items(item_id, 7)
        assert [item.item_id for item in reply.items] == ranked[:7] and reply.returned == 7
    assert retriever.similar_items("item-01", 1000).returned == len(item_ids) - 2


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": 1001}, "k"),
        ({"k": 10**9}, "k"),
        ({"user_id": 5}, "user_id"),
        ({"history": ["item-01"] * 501}, "history"),
        ({"history": [{"item_id": "item-01", "timestamp": float("nan")}]}, "history[0].timestamp"),
        ({"history": [{"item_id": "item-01", "timestamp": -1}]}, "history[0].timestamp"),
        ({"history": ["item-01", {"item_id": "item-01", "event_type": "teleport"}]}, "history[1].event_type"),
        ({"context": {"weather": "wet"}}, "context.weather"),
        ({"context": {"budget": "much"}}, "context.budget"),
        ({"context": {"hour": ["a"]}}, "context.hour"),
        ({"history": ["item-01"], "context": {"budget": ["1"]}}, "context.budget"),
        ({"preferences": {"dislikes": ["drama"]}}, "preferences.dislikes"),
        ({"now": float("inf")}, "now"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(retriever: Retriever, request_fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        retriever.recommend(**request_fields)
    assert caught.value.field == field and caught.value.status == 422


def test_similar_items_of_an_unknown_item_is_a_404(retriever: Retriever) -> None:
    with pytest.raises(RequestError) as caught:
        retriever.similar_items("who?")
    assert (caught.value.field, caught.value.status) == ("id", 404)


def test_an_index_of_its_own_version_is_told_apart_from_its_model(bundle: Any, tmp_path: Any) -> None:
    child = publish(tmp_path, "v1-i1", {}, {"model_version": "v1"}, parent=bundle)
    reply = Retriever.open(child).similar_items("item-01", 1)
    assert (reply.model_version, reply.index_version) == ("v1", "v1-i1")


def test_another_secret_is_refused_too(world: Any, tmp_path: Any) -> None:
    UserKeys.open(str(tmp_path / "other"), create=True)
    with pytest.raises(ConfigError, match=r"not the one that the users .* serving\.key_file"):
        Retriever.open(world.bundle, world.histories, tmp_path / "other")


def test_a_moment_replayed_knows_no_later_events(world: Any, retriever: Retriever) -> None:
    """user-11's events lie on the 12 days before NOW."""
    then = NOW_S - 3.5 * DAY_S
    known = {name: values[:9] for name, values in stored(world, "user-11").items() if name != "now"}
    reply = retriever.recommend(user_id="user-11", k=100, now=then)
    assert ids(reply) == by_hand(world, UserRow(**known, now=round(then * 1e6)), set(known["history_items"]), 100)
    long_ago = retriever.recommend(user_id="user-11", now=NOW_S - 100 * DAY_S)
    assert long_ago.fallback is not None and long_ago.fallback.reason == "no_history"


def test_a_missing_secret_is_refused_instead_of_making_everybody_a_stranger(world: Any, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="key"):
        Retriever.open(world.bundle, world.histories, tmp_path / "none", Limits())
