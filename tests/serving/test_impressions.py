"""Every list leaves a row from which it can be computed again, and no raw user id."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.asked import Known
from serving.impressions import Outbox
from serving.messages import RecommendRequest
from serving.page_messages import BatchRequest, RerankRequest
from serving.profiles import Profiles, open_histories
from serving.retriever import Retriever
from serving.shelves import answer_rerank, answer_rows
from serving.sqlite_events import SqliteEvents
from towers.bundle import Bundle

PERSON = "a person's name"


@pytest.fixture
def logged(world: Any, tmp_path: Path) -> Iterator[Retriever]:
    keys, histories = open_histories(world.histories, str(world.key_file))
    events = SqliteEvents(tmp_path / "events.db", keys.fingerprint())
    retriever = Retriever.load(Bundle.open(world.bundle), Profiles(keys, histories, events))
    retriever.outbox = Outbox(tmp_path / "impressions.db", "settings", 100)
    yield retriever
    retriever.outbox.close()


def rows(retriever: Retriever) -> list[dict[str, Any]]:
    assert retriever.outbox is not None
    retriever.outbox.flush()
    return retriever.outbox.rows()


ASKED: list[dict[str, Any]] = [
    {"user_id": "user-4", "k": 7},
    {"user_id": PERSON, "k": 5, "context": {"hour": "5", "budget": 3}, "exclude": ["item-20"], "exclude_seen": False},
    {"history": ["item-01", {"item_id": "item-02", "event_type": "skip", "timestamp": 1_700_000_000}], "k": 9},
    {"preferences": ["drama"], "filter": [{"field": "categories", "any_of": ["drama", "news"]}]},
    {"user_id": "a stranger", "candidate_items": ["item-01", "item-02"], "now": 1_728_000_000},
]


@pytest.mark.parametrize("asked", ASKED)
def test_a_list_can_be_computed_again_from_its_row(logged: Retriever, asked: dict[str, Any]) -> None:
    logged.add_events([{"user_id": user, "item_id": "item-09", "event_id": "1"} for user in (PERSON, "user-4")])
    reply = logged.recommend(**asked)
    (row,) = rows(logged)
    # what happens later must not change what is computed again
    later = {"item_id": "item-11", "event_id": "2", "timestamp": 1}
    logged.add_events([{"user_id": user, **later} for user in (PERSON, "user-4", "a stranger")])
    key = None if row["user_key"] is None else bytes.fromhex(row["user_key"])
    request = msgspec.convert(row["request"], RecommendRequest)
    again = logged.answer(request, Known(key, row["timestamp"], row["arrived"]))
    assert (again.items, again.mode) == (reply.items, reply.mode)
    assert (row["item_id"], row["score"]) == ([item.item_id for item in reply.items], [item.score for item in reply.items])
    assert (row["recommendation_id"], row["mode"], row["k"]) == (reply.recommendation_id, reply.mode, reply.k)
    assert (row["model_version"], row["index_version"], row["item_changes"]) == ("v1", "v1", 0) and row["config_hash"] == "settings"
    assert row["propensity"] == [1.0] * len(reply.items) and row["candidate_count"] == len(reply.items) and row["policy"] == {"k": reply.k}
    assert len(rows(logged)) == 1, "computing again shows nobody anything"


def test_rows_of_a_page_and_the_callers_candidates_are_logged(logged: Retriever) -> None:
    request = msgspec.convert({"user_id": "user-4", "rows": [{"name": "a", "k": 3}, {"name": "b", "k": 2}]}, BatchRequest)
    page = answer_rows(logged, request, lambda: None)
    ranked = answer_rerank(logged, RerankRequest(user_id="user-4", items=["item-20", "item-21", "who?"]))
    found = rows(logged)
    shown = [(row["kind"], row["row"], len(row["item_id"])) for row in found]
    assert shown == [("recommend_batch", 0, 3), ("recommend_batch", 1, 2), ("rerank", 0, 2)]
    assert {row["recommendation_id"] for row in found[:2]} == {page.recommendation_id} != {ranked.recommendation_id}


def test_no_raw_user_id_is_written(logged: Retriever, tmp_path: Path) -> None:
    logged.recommend(user_id=PERSON)
    assert len(rows(logged)) == 1
    assert not any(PERSON.encode() in path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


def test_the_newest_rows_are_kept_and_outlive_the_process(logged: Retriever, tmp_path: Path) -> None:
    for k in range(1, 121):
        logged.recommend(history=["item-01"], k=1 + k % 5)
        if k % 30 == 0:
            rows(logged)
    kept = rows(logged)
    assert len(kept) == 100
    again = Outbox(tmp_path / "impressions.db", "settings", 100)
    assert again.rows() == kept and again.lost == 0
    again.close()


def test_a_disk_that_fails_loses_nothing_that_waits(logged: Retriever) -> None:
    outbox = logged.outbox
    assert outbox is not None
    logged.recommend(k=1)
    outbox._database._connection.execute("PRAGMA query_only=ON")
    with pytest.raises(Exception, match="readonly"):
        outbox.flush()
    logged.recommend(k=2)
    outbox._database._connection.execute("PRAGMA query_only=OFF")
    assert [row["k"] for row in rows(logged)] == [1, 2] and outbox.lost == 0
