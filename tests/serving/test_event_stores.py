"""Every event store keeps the same promises; the one on disk keeps them across processes and restarts."""

import itertools
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from serving.events import DAY_US, EventStore, MemoryEvents, Retention, StoredEvent
from serving.sqlite_events import Exported, SqliteEvents
from towers.errors import ConfigError, DataError

ANN, BEN = b"a" * 16, b"b" * 16
NOW = 20_000 * DAY_US
SECRET = b"0123456789abcdef"
Open = Callable[[Retention], EventStore]


@pytest.fixture(params=["memory", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens a new, empty store."""
    stores: list[EventStore] = []

    def open_store(retention: Retention) -> EventStore:
        disk = SqliteEvents(tmp_path / f"{len(stores)}.db", SECRET, retention) if request.param == "sqlite" else None
        stores.append(disk or MemoryEvents(retention))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def event(event_id: str, time: int, item: str = "", user: bytes = ANN, kind: str = "play") -> StoredEvent:
    return StoredEvent(user, event_id, item or f"item of {event_id}", kind, NOW + time)


def items(store: EventStore, user: bytes = ANN, now: int = NOW) -> list[str]:
    return list(store.history(user, now).items)


def test_events_come_back_in_the_order_of_time_and_arrival(opened: Open) -> None:
    store = opened(Retention())
    assert store.append([event("c", 3), event("a", 1), event("tie 1", 2)], NOW) == 3
    assert store.append([event("b", 1, user=BEN), event("tie 2", 2), event("z", 0)], NOW) == 3
    found = store.history(ANN, NOW)
    assert list(found.items) == ["item of z", "item of a", "item of tie 1", "item of tie 2", "item of c"]
    assert list(found.timestamps) == [NOW, NOW + 1, NOW + 2, NOW + 2, NOW + 3] and set(found.events) == {"play"}
    assert sorted(found.arrivals) == [found.arrivals[i] for i in (4, 1, 2, 3, 0)]
    assert items(store, BEN) == ["item of b"] and items(store, b"?" * 16) == []


def test_what_was_taken_once_changes_nothing_again(opened: Open) -> None:
    store = opened(Retention())
    assert store.append([event("a", 1), event("a", 1), event("a", 5, "elsewhere")], NOW) == 1
    assert store.append([event("a", 1), event("b", 2), event("other id", 1, "item of a")], NOW) == 1
    assert items(store) == ["item of a", "item of b"]
    same_moment = [event("c", 1, "item of a", kind="skip"), event("a", 1, user=BEN)]
    assert store.append(same_moment, NOW) == 2, "another type, and another user, make another event"


def copied(store: EventStore) -> None:
    """A store on disk forgets what is not among the newest only then."""
    if isinstance(store, SqliteEvents):
        store.note_exported(Exported(store.taken(), 0))


def test_what_waits_to_be_copied_stays_though_newer_ones_are_read(tmp_path: Path) -> None:
    store = SqliteEvents(tmp_path / "events.db", SECRET, Retention(newest=5))
    assert store.append([event(f"{n}", n) for n in range(12)], NOW) == 12
    assert store.append([event(f"{n}", n) for n in range(8, 20)], NOW) == 8
    newest = [f"item of {n}" for n in range(15, 20)]
    assert items(store) == newest and len(store.arrived(0, 99)) == 20
    store.note_exported(Exported(10, 0))
    assert items(store) == newest and store.arrived(0, 99)[0].arrival == 11
    store.note_exported(Exported(store.taken(), 0))
    assert items(store) == newest == [e.item_id for e in store.arrived(0, 99)]
    store.close()


def test_the_newest_are_kept(opened: Open) -> None:
    store = opened(Retention(newest=3))
    told = [event(name, time) for name, time in (("d", 4), ("b", 2), ("e", 5), ("c", 3), ("a", 1))]
    assert store.append(told, NOW) == (3 if isinstance(store, MemoryEvents) else 5)
    copied(store)
    assert items(store) == ["item of c", "item of d", "item of e"]
    store.append([event("a", 1)], NOW)
    copied(store)
    assert items(store) == ["item of c", "item of d", "item of e"]
    assert store.append([event("tie", 3)], NOW) == 1 and items(store) == ["item of tie", "item of d", "item of e"]


def test_the_old_are_gone(opened: Open) -> None:
    store = opened(Retention(ttl_days=1))
    assert store.append([event("old", -DAY_US - 1), event("a", 0), event("b", 1)], NOW) == 2
    assert items(store, now=NOW) == ["item of a", "item of b"]
    assert items(store, now=NOW + DAY_US + 1) == ["item of b"], "unread, though no purge came by"
    assert store.purge(NOW + DAY_US + 1) == 1 and items(store, now=NOW) == ["item of b"]
    assert store.purge(NOW + DAY_US + 1) == 0


def test_a_past_state_can_be_read(opened: Open) -> None:
    store = opened(Retention())
    store.append([event("b", 2)], NOW)
    (arrived,) = store.history(ANN, NOW).arrivals
    store.append([event("a", 1), event("c", 3)], NOW)
    assert list(store.history(ANN, NOW, arrived).items) == ["item of b"] and len(items(store)) == 3


@pytest.mark.parametrize("seed", range(5))
def test_any_stream_gives_what_a_plain_list_gives(opened: Open, seed: int) -> None:
    """Random batches with every kind of repetition, against a list that is searched from end to end."""
    rng = np.random.default_rng(seed)
    store, known = opened(Retention(newest=10)), list[StoredEvent]()
    for _ in range(30):
        drawn = rng.integers(0, (12, 6, 3, 2, 2), (rng.integers(1, 8), 5)).tolist()
        batch = [event(f"e{a}", b, f"i{c}", (ANN, BEN)[d], ("play", "skip")[e]) for a, b, c, d, e in drawn]
        store.append(batch, NOW)
        copied(store)
        for new in batch:
            if not any(new.user_key == old.user_key and (new.event_id == old.event_id or content(new) == content(old)) for old in known):
                known.append(new)
        for user in (ANN, BEN):
            # sorting is stable, so what came first stays first among equal times; what falls out is forgotten
            newest = sorted((old for old in known if old.user_key == user), key=lambda old: old.timestamp)[-10:]
            known = [old for old in known if old.user_key != user or old in newest]
            found = store.history(user, NOW)
            assert list(zip(found.timestamps, found.items, found.events, strict=True)) == [content(e) for e in newest]


def content(event: StoredEvent) -> tuple[int, str, str]:
    return event.timestamp, event.item_id, event.event_type


def test_the_file_outlives_the_store_and_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "state" / "events.db"
    one, two = SqliteEvents(path, SECRET), SqliteEvents(path, SECRET)
    for number, store in zip(range(6), itertools.cycle((one, two)), strict=False):
        assert store.append([event(f"{number}", number), event("shared", 9)], NOW) == (2 if number == 0 else 1)
    assert items(one) == items(two) and len(items(one)) == 7
    one.close(), two.close()
    again = SqliteEvents(path, SECRET)
    assert again.append([event("3", 3)], NOW) == 0 and len(items(again)) == 7
    assert again.append([event("new", 4)], NOW) == 1 and items(again)[4:6] == ["item of 4", "item of new"]
    again.close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_deleted_events_leave_no_bytes(tmp_path: Path) -> None:
    store = SqliteEvents(tmp_path / "events.db", SECRET, Retention(ttl_days=1))
    store.append([event(f"{i}", i, "an item nobody else looked at") for i in range(50)], NOW)
    assert store.purge(NOW + 2 * DAY_US) == 50
    assert not any(b"nobody else" in path.read_bytes() for path in tmp_path.iterdir())
    store.close()


def test_a_batch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = SqliteEvents(tmp_path / "events.db", SECRET)
    with pytest.raises(UnicodeEncodeError):
        store.append([event("a", 1), event("b", 2, "\ud800")], NOW)
    assert items(store) == [] and store.append([event("a", 1)], NOW) == 1
    store.close()


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    SqliteEvents(tmp_path / "events.db", SECRET).close()
    with pytest.raises(ConfigError, match=r"another secret.*serving\.state_dir"):
        SqliteEvents(tmp_path / "events.db", b"another")
    (tmp_path / "text.db").write_text("not a database " * 1000)
    with pytest.raises(DataError, match=r"cannot be opened.*from a backup, or set serving\.state_dir"):
        SqliteEvents(tmp_path / "text.db", SECRET)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be opened"):
        SqliteEvents(tmp_path / "file" / "events.db", SECRET)


def test_reading_by_time_uses_no_scan(tmp_path: Path) -> None:
    """A request reads one user's rows, however many others there are."""
    SqliteEvents(tmp_path / "events.db", SECRET).close()
    with closing(sqlite3.connect(tmp_path / "events.db")) as connection:
        query = "EXPLAIN QUERY PLAN SELECT item_id FROM events WHERE user_key = ? AND timestamp >= ? ORDER BY timestamp, arrival"
        plan = connection.execute(query, (ANN, 0)).fetchall()
    assert "SEARCH events USING PRIMARY KEY (user_key=? AND timestamp>?)" in plan[0][3]
