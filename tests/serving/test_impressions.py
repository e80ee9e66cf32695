"""Every list leaves a row from which it can be computed again, and no raw user id."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving import impressions
from serving.engine import Engine
from serving.impressions import Outbox, chance
from serving.item_changes import ItemChanges
from serving.messages import Asker
from serving.page_messages import BatchRequest, RerankRequest
from serving.policy import SelectorSettings
from serving.profiles import Profiles, open_histories
from serving.recompute import recompute
from serving.retriever import Retriever
from serving.rolling import impression_table
from serving.shelves import answer_rerank, answer_rows
from serving.sqlite_events import SqliteEvents
from towers.bundle import Bundle
from towers.errors import StorageError
from towers.live_logs import IMPRESSION_SCHEMA

PERSON = "a person's name"


@pytest.fixture
def logged(world: Any, tmp_path: Path) -> Iterator[Retriever]:
    keys, histories = open_histories(world.histories, str(world.key_file))
    events = SqliteEvents(tmp_path / "events.db", keys.fingerprint())
    retriever = Retriever.load(Bundle.open(world.bundle), Profiles(keys, histories, events))
    retriever.outbox = Outbox(tmp_path / "impressions.db", "settings", candidate_share=0.5)
    yield retriever
    retriever.outbox.close()
    events.close()


def rows(retriever: Retriever) -> list[dict[str, Any]]:
    """As they come back from a file."""
    assert retriever.outbox is not None
    retriever.outbox.flush()
    found = retriever.outbox.waiting(1_000_000, 1 << 30).rows
    return impression_table(found).to_pylist() if found else []


ASKED: list[dict[str, Any]] = [
    {"user_id": "user-4", "k": 7},
    {"user_id": PERSON, "k": 5, "context": {"hour": "5", "budget": 3}, "exclude": ["item-20"], "exclude_seen": False},
    {"history": ["item-01", {"item_id": "item-02", "event_type": "skip", "timestamp": 1_700_000_000}], "k": 9},
    {"preferences": ["drama"], "filter": [{"field": "categories", "any_of": ["drama", "news"]}]},
    {"user_id": "a stranger", "candidate_items": ["item-01", "item-02"], "now": 1_728_000_000},
]


@pytest.mark.parametrize("asked", ASKED)
def test_a_list_can_be_computed_again_from_its_row(logged: Retriever, asked: dict[str, Any]) -> None:
    tell(logged, "item-09", PERSON, "user-4")
    reply = logged.recommend(**asked)
    (row,) = rows(logged)
    tell(logged, "item-11", PERSON, "user-4", "a stranger")  # what happens later must not change what is computed again
    again = recompute(logged, row)
    assert (again.items, again.mode, again.moved) == (reply.items, reply.mode, ())
    assert (row["item_id"], row["score"]) == ([item.item_id for item in reply.items], [item.score for item in reply.items])
    assert (row["recommendation_id"], row["mode"], row["k"]) == (reply.recommendation_id, reply.mode, reply.k)
    assert (row["model_version"], row["index_version"], row["item_changes"]) == ("v1", "v1", 0) and row["config_hash"] == "settings"
    assert row["temperature"] == 0.0 and row["propensity"] == [1.0] * len(reply.items) and row["candidate_count"] == len(reply.items)
    assert len(rows(logged)) == 1, "computing again shows nobody anything"


def test_pages_and_the_callers_candidates_can_be_computed_again(logged: Retriever) -> None:
    tell(logged, "item-09", "user-4")
    request = msgspec.convert(
        {"user_id": "user-4", "rows": [{"name": "a", "k": 3}, {"name": "b", "k": 2, "context": {"hour": "7"}}]}, BatchRequest
    )
    page = answer_rows(logged, request)
    ranked = answer_rerank(logged, RerankRequest(user_id="user-4", items=["item-20", "item-21", "who?"]))
    found = rows(logged)
    shown = [(row["kind"], row["row"], len(row["item_id"])) for row in found]
    assert shown == [("recommend_batch", 0, 3), ("recommend_batch", 1, 2), ("rerank", 0, 2)]
    assert {row["recommendation_id"] for row in found[:2]} == {page.recommendation_id} != {ranked.recommendation_id}
    tell(logged, "item-11", "user-4")
    again = [recompute(logged, row) for row in found]
    assert [one.items for one in again] == [page.rows[0].items, page.rows[1].items, ranked.items]
    assert not any(one.moved for one in again) and len(rows(logged)) == 3


def test_a_list_of_another_catalogue_is_said_to_be_one(logged: Retriever, tmp_path: Path) -> None:
    changes = ItemChanges(tmp_path / "items.db")
    engine = Engine(logged, changes)
    engine.put_item("brand new", {"categories": ["drama"]})
    reply = engine.retriever.recommend(user_id="user-4", k=5)
    (row,) = rows(logged)
    assert row["item_changes"] == 1 and recompute(engine.retriever, row).items == reply.items
    engine.delete_item(reply.items[0].item_id)
    again = recompute(engine.retriever, row)
    assert again.moved == ("item_changes: 1 then, 2 now",) and again.items != reply.items
    changes.close()


def test_what_a_service_blocks_since_is_said(logged: Retriever) -> None:
    logged.recommend(user_id="user-4", k=5)
    logged.steer(SelectorSettings(blocked=["item-20"]))
    logged.recommend(user_id="user-4", k=5)
    logged.steer(SelectorSettings(blocked=["item-20", "item-21"]))
    logged.recommend(user_id="user-4", k=5)
    found = rows(logged)
    told = [[why.partition(":")[0] for why in recompute(logged, row).moved] for row in found]
    assert told == [["blocked"], ["blocked"], []] and found[0]["blocked"] is None and found[1]["blocked"] != found[2]["blocked"]
    logged.steer(SelectorSettings())
    assert recompute(logged, found[0]).moved == () and recompute(logged, found[2]).moved[0].endswith("None now")


def test_a_row_has_all_that_its_schema_declares(logged: Retriever) -> None:
    """And takes it from the request, the person and the choice."""
    request = Asker(user_id=PERSON, surface="home", channel="app")
    answer_rows(logged, msgspec.convert({**msgspec.to_builtins(request), "rows": [{"k": 3}]}, BatchRequest))
    (row,) = rows(logged)
    assert list(row) == IMPRESSION_SCHEMA.names
    assert (row["surface"], row["channel"], row["user_key"]) == ("home", "app", logged.profiles.keys.key(PERSON))
    assert (row["request_id"], row["policy"]) == (None, '{"k":3}') and PERSON not in str(row)


def test_a_share_of_the_lists_is_kept_with_its_candidates(logged: Retriever) -> None:
    """Which ones is decided by the list's id alone."""
    for _ in range(200):
        logged.recommend(history=["item-01"], k=3)
    found = rows(logged)
    with_candidates = [row for row in found if row["candidate_item_id"] is not None]
    assert with_candidates == [row for row in found if chance(row["recommendation_id"]) < 0.5] and 60 < len(with_candidates) < 140
    for row in with_candidates:
        assert len(row["candidate_item_id"]) == len(row["candidate_score"]) == row["candidate_count"]
        assert set(row["item_id"]) <= set(row["candidate_item_id"])


def test_no_raw_user_id_is_written(logged: Retriever, tmp_path: Path) -> None:
    logged.recommend(user_id=PERSON)
    assert len(rows(logged)) == 1
    assert not any(PERSON.encode() in path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


def test_a_disk_that_fails_loses_nothing_that_waits(logged: Retriever) -> None:
    outbox = logged.outbox
    assert outbox is not None
    logged.recommend(k=1)
    outbox._database._writer.execute("PRAGMA query_only=ON")
    with pytest.raises(Exception, match="readonly"):
        outbox.flush()
    logged.recommend(k=2)
    outbox._database._writer.execute("PRAGMA query_only=OFF")
    assert [row["k"] for row in rows(logged)] == [1, 2] and outbox.lost == 0


def test_what_waits_is_bounded_and_nobody_waits_for_it(logged: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = logged.outbox
    assert outbox is not None
    monkeypatch.setattr(impressions, "_MOST_BYTES", 6000)
    with closing(sqlite3.connect(outbox._database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for k in range(1, 21):
            logged.recommend(k=k)
            started = time.monotonic()
            with pytest.raises(StorageError, match="locked"):
                outbox.flush()
            assert time.monotonic() - started < 2
        assert sum(len(row.row) for row in outbox._encoded) <= 6000 and not outbox._waiting
        other.execute("ROLLBACK")
    found = [row["k"] for row in rows(logged)]
    assert found == list(range(21 - len(found), 21)) and outbox.lost == 20 - len(found) > 0 and found


def tell(retriever: Retriever, item: str, *users: str) -> None:
    """An event that lies early in time, whenever it comes."""
    retriever.add_events([{"user_id": user, "item_id": item, "event_id": item, "timestamp": 1} for user in users])
