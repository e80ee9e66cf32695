"""What a person takes out of the history is out of it: of the next list, of batch lists, and of what prepare makes of the same events."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.bounds import Limits
from serving.client import Client
from serving.events import LiveHistory, Retention
from serving.messages import EventsAdded, RecommendRequest
from serving.profiles import Profiles, joined, open_histories
from serving.recommend_job import lists
from serving.retriever import Retriever
from serving.sqlite_events import SqliteEvents
from serving.standing import Standing
from serving.user_state import StoredUser
from towers.bundle import Bundle
from towers.columns import REMOVAL
from training.removals import taken_out

NOW_S = 20_000 * 86_400
DAY_US = 86_400_000_000
DTYPE = np.dtype([("key_hi", "<u8"), ("key_lo", "<u8"), ("item", "<i4"), ("event", "<i4")])


@contextmanager
def opened(world: Any, folder: Path, standing: Standing | None = None) -> Iterator[Retriever]:
    keys, histories = open_histories(world.histories, str(world.key_file))
    with closing(SqliteEvents(folder / "events.db", keys.fingerprint(), Retention(50))) as events:
        yield Retriever.load(Bundle.open(world.bundle), Profiles(keys, histories, events, 50, standing), Limits(max_events=20))


@pytest.fixture
def fresh(world: Any, tmp_path: Path) -> Iterator[Retriever]:
    with opened(world, tmp_path) as retriever:
        yield retriever


def remove(retriever: Retriever, user: str, *items: str, **told: Any) -> EventsAdded:
    told = {"event_id": f"r{time.time_ns()}", **told}
    events = [{"user_id": user, "item_id": item, "event_type": REMOVAL, **told} for item in items]
    return retriever.add_events([{**event, "event_id": f"{told['event_id']}-{n}"} for n, event in enumerate(events)])


def test_the_next_list_is_that_of_a_history_without_the_item(fresh: Retriever, world: Any) -> None:
    """Of every stored event, for all users: the list that the events left make, and no reason that names the item."""
    for user in [f"user-{i}" for i in range(2, 12, 3)]:
        gone = world.users[user][1]
        times = [NOW_S - 86_400 * (len(world.users[user]) - i) for i in range(len(world.users[user]))]
        kept = [
            {"item_id": item, "event_type": "play", "timestamp": when}
            for item, when in zip(world.users[user], times, strict=True)
            if item != gone
        ]
        assert remove(fresh, user, gone) == EventsAdded(1, 0, 0)
        ours = fresh.recommend(user_id=user, k=40, now=NOW_S, explain=True)
        assert ours.items == fresh.recommend(history=kept, k=40, now=NOW_S, explain=True).items
        assert gone not in str([item.explanation for item in ours.items])
        assert gone in [item.item_id for item in ours.items], "as if it had never happened"
        key = fresh.profiles.keys.key(user)
        batch = lists(fresh, [key], RecommendRequest(k=40, now=NOW_S), NOW_S * 1_000_000).to_pylist()[0]
        assert batch["item_ids"] == [item.item_id for item in ours.items]


def test_events_of_a_log_whose_clock_is_ahead_are_removed(fresh: Retriever, world: Any, tmp_path: Path) -> None:
    table = pq.read_table(world.histories)
    times = [[time.time_ns() // 1000 + 8 * 3600 * 10**6 + at for at in range(len(items))] for items in table["item_ids"].to_pylist()]
    place = table.column_names.index("timestamps")
    pq.write_table(table.set_column(place, "timestamps", pa.array(times, pa.list_(pa.int64()))), tmp_path / "ahead.parquet")
    fresh.profiles = fresh.profiles.with_histories(tmp_path / "ahead.parquet")
    gone, *_ = items = world.users["user-4"]
    remove(fresh, "user-4", gone)
    user = fresh.profiles.get(fresh.profiles.keys.key("user-4"), "time", time.time_ns() // 1000)[0]
    assert user is not None and list(user.items) == [item for item in items if item != gone]


def test_what_comes_after_counts_again(fresh: Retriever) -> None:
    def profile() -> list[str]:
        user = fresh.profiles.get(fresh.profiles.keys.key("new"), "time", time.time_ns() // 1000)[0]
        return [] if user is None else list(user.items)

    early = {"user_id": "new", "item_id": "item-01", "event_type": "play"}
    ahead = time.time() + 200  # by a clock that is ahead of the server's
    fresh.add_events([{**early, "timestamp": ahead}, {**early, "item_id": "item-02", "event_id": "2"}])
    assert sorted(profile()) == ["item-01", "item-02"]
    remove(fresh, "new", "item-01")
    assert profile() == ["item-02"]
    fresh.add_events([{**early, "timestamp": ahead - 3600}])
    assert profile() == ["item-02"], "told late, it happened before"
    fresh.add_events([{**early, "timestamp": ahead + 60}])
    assert profile() == ["item-02", "item-01"]
    remove(fresh, "new", "item-01", "item-02")
    assert profile() == [] and fresh.recommend(user_id="new").mode == "fallback"


def test_of_one_request_what_stands_before_the_removal_is_removed(fresh: Retriever) -> None:
    ahead = time.time() + 200
    play = {"user_id": "new", "item_id": "item-01", "event_type": "play"}
    fresh.add_events([{**play, "timestamp": ahead}, {**play, "event_type": REMOVAL, "event_id": "r"}, {**play, "timestamp": ahead + 1}])
    user = fresh.profiles.get(fresh.profiles.keys.key("new"), "time", time.time_ns() // 1000)[0]
    assert user is not None and user.timestamps == [round((ahead + 1) * 1e6)] and user.events == ["play"]


def test_a_removal_of_the_past_leaves_what_came_after_it(fresh: Retriever) -> None:
    play = {"user_id": "new", "item_id": "item-01", "event_type": "play"}
    fresh.add_events([{**play, "timestamp": NOW_S}, {**play, "timestamp": NOW_S + 2}])
    fresh.add_events([{**play, "event_type": REMOVAL, "timestamp": NOW_S + 1}])
    user = fresh.profiles.get(fresh.profiles.keys.key("new"), "time", time.time_ns() // 1000)[0]
    assert user is not None and user.timestamps == [(NOW_S + 2) * 1_000_000]


def test_it_outlives_the_process_and_lists_of_before_can_be_computed_again(world: Any, tmp_path: Path) -> None:
    with opened(world, tmp_path) as first:
        key = first.profiles.keys.key("user-4")
        before, arrived = first.profiles.get(key, "time", NOW_S * 1_000_000)
        remove(first, "user-4", world.users["user-4"][0])
    with opened(world, tmp_path) as again:
        found, last = again.profiles.get(key, "time", NOW_S * 1_000_000)
        assert found is not None and found.items == world.users["user-4"][1:] and last == 1
        assert again.profiles.get(key, "time", NOW_S * 1_000_000, arrived) == (before, arrived)


def test_a_removal_is_kept_of_somebody_who_allows_nothing(world: Any, tmp_path: Path) -> None:
    refused = dict.fromkeys(("personalize", "train", "marketing", "measure"), False)
    with opened(world, tmp_path, Standing()) as retriever:
        key = retriever.profiles.keys.key("user-4")
        retriever.profiles.standing.decide(key, refused)
        assert remove(retriever, "user-4", world.users["user-4"][0]).added == 1
        retriever.profiles.standing.decide(key, dict.fromkeys(refused, True))
        found = retriever.profiles.get(key, "time", NOW_S * 1_000_000)[0]
    assert found is not None and found.items == world.users["user-4"][1:]


def test_over_http(client: httpx.Client) -> None:
    person = f"over-http-{time.time_ns()}"
    with Client(str(client.base_url), timeout_s=10) as ours:
        ours.add_events([{"user_id": person, "item_id": item, "event_id": item} for item in ("item-01", "item-02")])
        assert ours.remove_from_history(person, ["item-01", "item-02"]) == EventsAdded(2, 0, 0)
        assert ours.recommend(user_id=person).mode == "fallback"
    refused = client.post("/v1/recommend", json={"history": [{"item_id": "item-01", "event_type": REMOVAL}]})
    assert refused.status_code == 422 and refused.json()["field"] == "history[0].event_type"


events = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["play", "skip", REMOVAL]), st.integers(0, 5)), max_size=24)


@settings(max_examples=300)
@given(events, st.integers(0, 24), st.sampled_from(["time", "position"]))
def test_the_streams_history_is_the_batchs(log: list[tuple[str, str, int]], exported: int, order: str) -> None:
    """Events in the order of their arrival, the first of them exported: prepare over all of them leaves what the profile is. The service
    has seen every removal."""
    # a removal and something done later with the same item are never of one microsecond
    log = [(item, kind, 2 * when + (kind == REMOVAL)) for item, kind, when in log]
    log = [event for at, event in enumerate(log) if event not in log[:at]]
    if order == "position":
        log = [(item, kind, at) for at, (item, kind, _) in enumerate(log)]
    place = {event: at for at, event in enumerate(log)}
    sort = (lambda e: (e[2], place[e])) if order == "time" else (lambda e: place[e])
    expected = batch(sorted(log, key=sort))
    stored, came = batch(sorted(log[:exported], key=sort)), [e for at, e in enumerate(log) if at >= exported or e[1] == REMOVAL]
    arrived = sorted(came, key=lambda e: (e[2], place[e]))
    if not arrived:
        return
    live = LiveHistory(*(list(column) for column in zip(*arrived, strict=True)), [place[event] for event in arrived])
    known = StoredUser(*(list(column) for column in zip(*stored, strict=True))) if stored else StoredUser([], [], [])
    found = joined(known, live, order, 100)
    assert list(zip(found.items, found.events, found.timestamps, strict=True)) == expected


def batch(ordered: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    records = np.zeros(len(ordered), DTYPE)
    records["item"] = ["abc".index(item) for item, _, _ in ordered]
    records["event"] = [("play", "skip", REMOVAL).index(kind) for _, kind, _ in ordered]
    return [event for event, gone in zip(ordered, taken_out(records, 2).tolist(), strict=True) if not gone]
