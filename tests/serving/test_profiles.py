"""One history of what was exported and what came since; adding events changes the next list."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bounds import Limits
from serving.events import LiveHistory, Retention
from serving.messages import EventsAdded
from serving.profiles import Profiles, joined, open_histories
from serving.retriever import Retriever
from serving.sqlite_events import SqliteEvents
from serving.user_state import StoredUser
from towers.bundle import Bundle
from towers.columns import NO_TIME
from towers.errors import RequestError

DAY_S = 86_400
NOW_S = 20_000 * DAY_S


def live(*rows: tuple[str, int, int]) -> LiveHistory:
    return LiveHistory([row[0] for row in rows], ["play"] * len(rows), [row[1] for row in rows], [row[2] for row in rows])


@pytest.mark.parametrize(
    ("order", "stored", "events", "newest", "expected"),
    [
        ("time", [("a", 1), ("b", 2)], [("c", 3, 1)], 9, "abc"),
        ("time", [("a", 1), ("b", 5)], [("c", 1, 2), ("d", 5, 1), ("e", 7, 3)], 9, "acbde"),
        ("time", [("a", 1), ("b", 5)], [("a", 1, 1), ("b", 5, 2), ("c", 5, 3)], 9, "abc"),
        ("time", [("a", NO_TIME)], [("b", 1, 1)], 9, "ab"),
        ("time", [], [("b", 1, 1), ("b", 2, 2)], 9, "bb"),
        ("time", [("a", 1), ("b", 2)], [("c", 3, 1)], 2, "bc"),
        ("position", [("a", NO_TIME), ("b", NO_TIME)], [("c", 1, 2), ("d", 2, 1)], 9, "abdc"),
        ("position", [("a", 8), ("b", 9)], [("c", 1, 2), ("d", 2, 1)], 3, "bdc"),
    ],
)
def test_joined(order: str, stored: list[tuple[str, int]], events: list[tuple[str, int, int]], newest: int, expected: str) -> None:
    known = StoredUser([item for item, _ in stored], ["play"] * len(stored), [time for _, time in stored], {"age": 5})
    user = joined(known, live(*events), order, newest)
    assert "".join(user.items) == expected and user.features == {"age": 5}
    assert len(user.events) == len(user.timestamps) == len(expected)


def test_an_unnamed_type_equals_the_default(retriever: Retriever) -> None:
    """Exported histories name no type that training had not seen; a live event without one is of the default type."""
    known = StoredUser(["a", "b"], ["", None], [1, 2])
    again = LiveHistory(["a", "b"], ["interaction", "interaction"], [1, 2], [1, 2])
    assert joined(known, again, "time", 9).items == ["a", "b"]


@pytest.fixture
def fresh(world: Any, tmp_path: Path) -> Iterator[Retriever]:
    """A retriever whose events nobody else sees, on disk."""
    with opened(world, tmp_path) as retriever:
        yield retriever


@contextmanager
def opened(world: Any, folder: Path) -> Iterator[Retriever]:
    keys, histories = open_histories(world.histories, str(world.key_file))
    with closing(SqliteEvents(folder / "state" / "events.db", keys.fingerprint(), Retention(50))) as events:
        yield Retriever.load(Bundle.open(world.bundle), Profiles(keys, histories, events, 50), Limits(max_events=20))


def ids(retriever: Retriever, **asked: Any) -> list[str]:
    return [item.item_id for item in retriever.recommend(**asked, k=40).items]


def test_events_change_the_next_list(fresh: Retriever) -> None:
    before = fresh.recommend(user_id="user-4", k=40, now=NOW_S)
    event = {"user_id": "user-4", "item_id": before.items[0].item_id, "event_type": "play", "timestamp": NOW_S - 60}
    assert fresh.add_events([event]) == EventsAdded(1, 0, 0)
    after = fresh.recommend(user_id="user-4", k=40, now=NOW_S)
    assert event["item_id"] not in [item.item_id for item in after.items]
    scores = {item.item_id: item.score for item in before.items}
    assert max(abs(item.score - scores[item.item_id]) for item in after.items) > 1e-3
    assert fresh.recommend(user_id="user-4", k=40, now=NOW_S - 61).items == before.items, "before it happened, it had not happened"
    assert fresh.add_events([event, event]) == EventsAdded(0, 2, 0) and ids(fresh, user_id="user-4", now=NOW_S) == [
        item.item_id for item in after.items
    ]


def test_events_equal_the_same_history_in_the_request(fresh: Retriever, retriever: Retriever) -> None:
    """A stranger's events, sent out of order and in parts, against the same events in one request."""
    history = [{"item_id": f"item-{i:02d}", "event_type": ("play", "skip")[i % 2], "timestamp": NOW_S - 3600 * (20 - i)} for i in range(9)]
    sent = [{**event, "user_id": "new", "event_id": f"e{i}"} for i, event in enumerate(history)]
    for part in (sent[5:], sent[2:7], sent[:3]):
        fresh.add_events(part)
    ours, theirs = fresh.recommend(user_id="new", k=40, now=NOW_S), retriever.recommend(history=history, k=40, now=NOW_S)
    assert ours.mode == "personalized" and ours.items == theirs.items
    assert fresh.recommend(user_id="other", now=NOW_S).fallback is not None


def test_events_outlive_the_process_without_raw_ids(world: Any, tmp_path: Path) -> None:
    with opened(world, tmp_path) as retriever:
        retriever.add_events([{"user_id": "a person's name", "item_id": "item-01", "event_id": "1"}])
    with opened(world, tmp_path) as again:
        assert again.recommend(user_id="a person's name").mode == "personalized"
        assert not any(b"a person's name" in path.read_bytes() for path in (tmp_path / "state").iterdir())


def test_events_of_this_process_alone(world: Any) -> None:
    """Without any stored histories or state, as from a notebook."""
    retriever = Retriever.open(world.bundle)
    assert retriever.add_events([{"user_id": "me", "item_id": "item-01", "event_id": "1"}]).added == 1
    assert retriever.recommend(user_id="me").mode == "personalized"


def test_what_is_said_of_an_event_is_kept(fresh: Retriever, tmp_path: Path) -> None:
    told = {"value": 4.5, "session_id": "s", "channel": "mail", "context": {"hour": "5", "budget": 3}, "recommendation_id": "r"}
    fresh.add_events([{"user_id": "user-4", "item_id": "who?", "event_id": "1", **told}, {"user_id": "x", "item_id": "y", "event_id": "2"}])
    kept = fresh.profiles.events._database.read("SELECT recommendation_id, facts FROM events ORDER BY arrival")  # type: ignore[attr-defined]
    assert kept[0] == ("r", '{"value":4.5,"session_id":"s","channel":"mail","context":{"hour":"5","budget":3}}') and kept[1] == (None, None)


def test_items_nobody_knows_yet_are_taken_and_counted(fresh: Retriever) -> None:
    events = [{"user_id": "new", "item_id": item, "event_id": item} for item in ("who?", "item-01", "item-08")]
    assert fresh.add_events(events) == EventsAdded(3, 0, 2)
    assert fresh.recommend(user_id="new").unknown_history_items == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"event_type": "teleport"}, "events[1].event_type"),
        ({"event_id": None, "timestamp": None}, "events[1].event_id"),
        ({"timestamp": time.time() + 3600}, "events[1].timestamp"),
        ({"timestamp": float("nan")}, "events[1].timestamp"),
        ({"timestamp": -5}, "events[1].timestamp"),
        ({"user_id": ""}, "events[1].user_id"),
        ({"item_id": 5}, "events[1].item_id"),
        ({"item_id": "\ud800"}, "events[1].item_id"),
        ({"user": "me"}, "events[1].user"),
        ({"context": {"weather": "wet"}}, "events[1].context.weather"),
        ({"context": {"budget": "much"}}, "events[1].context.budget"),
        ({"context": {"hour": {"a": 1}}}, "events[1].context.hour"),
        ({"value": "4"}, "events[1].value"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_stored(fresh: Retriever, change: dict[str, Any], field: str) -> None:
    good = {"user_id": "new", "item_id": "item-01", "event_id": "1"}
    with pytest.raises(RequestError) as caught:
        fresh.add_events([good, {**good, "event_id": "2", **change}])
    assert (caught.value.field, caught.value.status) == (field, 422)
    assert fresh.recommend(user_id="new").mode == "fallback"


def test_too_many_events_are_refused(fresh: Retriever) -> None:
    events = [{"user_id": "new", "item_id": f"item-{i}", "event_id": str(i)} for i in range(21)]
    with pytest.raises(RequestError, match="got 21, expected at most 20"):
        fresh.add_events(events)
    assert fresh.add_events(events[:20]).added == 20 and fresh.add_events([]).added == 0


def test_clocks_may_differ_a_little(fresh: Retriever) -> None:
    assert fresh.add_events([{"user_id": "new", "item_id": "item-01", "timestamp": time.time() + 200}]).added == 1
    assert np.isfinite([item.score for item in fresh.recommend(user_id="new").items]).all()
