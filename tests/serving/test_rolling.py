"""The logs become Parquet: every row once, in order, whatever kills the process.

Run as a program, this file is such a process: python test_rolling.py <folder> <first row>
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.asked import Asked, Known
from serving.consent_store import ConsentStore
from serving.events import Retention, StoredEvent
from serving.impressions import Listed, Outbox, Shown, Versions
from serving.messages import Item, RecommendRequest
from serving.policy import Dials, Policy
from serving.rolling import PART_BYTES, Rolling, roll_events, roll_impressions
from serving.run import discard_lists
from serving.selector import Candidates, Selection
from serving.signals import Signals
from serving.sqlite_events import SqliteEvents
from towers.encoder import UserRow
from towers.live_consent import LIVE_CONSENT
from towers.live_logs import EVENT_SCHEMA, IMPRESSION_SCHEMA
from towers.partitions import HOUR_US, Reading, parts

HOUR = 498_775 * HOUR_US


def shown(number: int, timestamp: int, request_id: str | None = None) -> Shown:
    """A list that carries its number; no candidates of it are asked for, so there is no catalogue."""
    scores = np.array([0.1, 1 / 3, -0.25], np.float32)
    rows = np.arange(3)
    items = [Item(f"item-{row}", None, float(score), []) for row, score in zip(rows, scores, strict=True)]
    listed = Listed(
        Policy(3, Dials(temperature=0.5)), Selection(rows, scores, np.array([1.0, 0.1, 1 / 3]), Candidates(rows, scores)), items
    )
    known = Known(bytes([number % 7]) * 16, timestamp, number)
    asked = Asked("cold", "", 0, "none", known, np.empty(0, np.int64), None, Signals(UserRow(), [], [], "cold", "", 0))
    return Shown(
        "recommend", 0, f"{number:032x}", RecommendRequest(user_id="someone", k=3), asked, Versions("m", "i", 2), listed, timestamp,
        request_id, None,  # type: ignore[arg-type]
    )  # fmt: skip


def lists(root: Path) -> list[int]:
    """Numbers of the lists in the files, in the order in which they stand there."""
    reading = Reading(root, IMPRESSION_SCHEMA)
    found = [int(name, 16) for table in reading for name in table.column("recommendation_id").to_pylist()]
    assert not reading.skipped
    return found


@pytest.fixture
def outbox(tmp_path: Path) -> Any:
    with_file = Outbox(tmp_path / "impressions.db", "settings")
    yield with_file
    with_file.close()


@pytest.fixture
def events(tmp_path: Path) -> Any:
    store = SqliteEvents(tmp_path / "events.db", b"fingerprint")
    yield store
    store.close()


def test_hours_that_are_over_leave_the_outbox(outbox: Outbox, tmp_path: Path) -> None:
    times = [HOUR - 1, HOUR, HOUR - 2, HOUR + 5, HOUR + HOUR_US]
    for number, at in enumerate(times, 1):
        outbox.add(shown(number, at, "call" if number == 1 else None))
    outbox.flush()
    roll_impressions(outbox, tmp_path / "log", HOUR)
    assert lists(tmp_path / "log") == [1, 3] and outbox.waiting(9, PART_BYTES).places == [2, 4, 5]
    roll_impressions(outbox, tmp_path / "log", HOUR + HOUR_US)
    assert lists(tmp_path / "log") == [1, 3, 2, 4]
    roll_impressions(outbox, tmp_path / "log", HOUR + HOUR_US, everything=True)
    assert lists(tmp_path / "log") == [1, 3, 2, 4, 5] and outbox.oldest() is None
    assert [part.parent.name for part in parts(tmp_path / "log")] == ["hour=06", "hour=07", "hour=08"]
    (row, *_), *_ = [table.to_pylist() for table in Reading(tmp_path / "log", IMPRESSION_SCHEMA)]
    assert row["score"] == np.array([0.1, 1 / 3, -0.25], np.float32).tolist() and row["propensity"] == [1.0, 0.1, 1 / 3]
    assert (row["user_key"], row["request_id"], row["arrived"], row["temperature"]) == (b"\1" * 16, "call", 1, 0.5)
    assert json.loads(row["request"])["k"] == 3 and "user_id" not in row["request"]


def test_much_of_one_hour_becomes_a_file_at_once(outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.rolling.PART_ROWS", 10)
    for number in range(1, 26):
        outbox.add(shown(number, HOUR + number))
    outbox.flush()
    roll_impressions(outbox, tmp_path / "log", HOUR + 30)
    assert lists(tmp_path / "log") == list(range(1, 21)) and len(parts(tmp_path / "log")) == 2
    assert outbox.waiting(99, PART_BYTES).places == [21, 22, 23, 24, 25]
    outbox.close()
    again = Outbox(tmp_path / "impressions.db", "settings")
    roll_impressions(again, tmp_path / "log", HOUR + 30, everything=True)
    again.add(shown(26, HOUR + 31))
    again.flush()
    assert again.waiting(99, PART_BYTES).places == [26], "a number given twice would be taken for one that is written"
    again.close()


def test_a_death_before_rows_are_removed_doubles_none(outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 6):
        outbox.add(shown(number, HOUR))
    outbox.flush()
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "remove", lambda places: (_ for _ in ()).throw(OSError("died")))
        with pytest.raises(OSError, match="died"):
            roll_impressions(outbox, tmp_path / "log", HOUR, everything=True)
    outbox.add(shown(6, HOUR))
    outbox.flush()
    roll_impressions(outbox, tmp_path / "log", HOUR, everything=True)
    assert lists(tmp_path / "log") == [1, 2, 3, 4, 5, 6] and outbox.oldest() is None


def test_events_are_copied_once_an_hour_in_the_order_of_their_arrival(events: SqliteEvents, tmp_path: Path) -> None:
    facts = '{"value": 2, "session_id": "s", "context": {"hour": "5"}}'
    first = [StoredEvent(b"k" * 16, f"e{n}", f"item-{n}", "play", 100 - n, "list" if n else None, facts if n else None) for n in range(3)]
    events.append(first, 0)
    now = time.time_ns() // 1000
    roll_events(events, tmp_path / "log", now)
    assert not parts(tmp_path / "log"), "the hour is not over"
    roll_events(events, tmp_path / "log", now + HOUR_US)
    roll_events(events, tmp_path / "log", now + HOUR_US)
    events.append([StoredEvent(b"l" * 16, "e9", "item-9", "play", 1)], 0)
    roll_events(events, tmp_path / "log", now + HOUR_US, everything=True)
    one, two = Reading(tmp_path / "log", EVENT_SCHEMA)
    assert one.column("event_id").to_pylist() == ["e0", "e1", "e2"] and two.column("event_id").to_pylist() == ["e9"]
    plain, told, _ = one.to_pylist()
    assert (told["value"], told["session_id"], told["recommendation_id"], json.loads(told["context"])) == (2.0, "s", "list", {"hour": "5"})
    assert (plain["value"], plain["context"], plain["recommendation_id"]) == (None, None, None)


def test_all_events_are_copied_though_few_of_a_user_are_kept(tmp_path: Path) -> None:
    store = SqliteEvents(tmp_path / "events.db", b"fingerprint", Retention(newest=5))
    for n in range(20):
        store.append([StoredEvent(b"k" * 16, f"e{n}", f"item-{n}", "play", n)], 0)
    roll_events(store, tmp_path / "log", HOUR, everything=True)
    (told,) = Reading(tmp_path / "log", EVENT_SCHEMA)
    assert told.column("event_id").to_pylist() == [f"e{n}" for n in range(20)]
    assert len(store.arrived(0, 99)) == 5
    store.close()


def test_many_events_become_a_file_at_once(events: SqliteEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.rolling.PART_ROWS", 10)
    now = time.time_ns() // 1000
    for number in range(25):
        events.append([StoredEvent(b"k" * 16, f"e{number}", f"item-{number}", "play", number)], 0)
        roll_events(events, tmp_path / "log", now)
    assert [len(table) for table in Reading(tmp_path / "log", EVENT_SCHEMA)] == [10, 10]


def test_events_of_a_death_before_it_was_noted_are_not_copied_twice(events: SqliteEvents, tmp_path: Path) -> None:
    events.append([StoredEvent(b"k" * 16, f"e{n}", f"item-{n}", "play", n) for n in range(3)], 0)
    before = events.exported()
    roll_events(events, tmp_path / "log", HOUR, everything=True)
    events.note_exported(before)
    events.append([StoredEvent(b"k" * 16, "e3", "item-3", "play", 3)], 0)
    roll_events(events, tmp_path / "log", HOUR, everything=True)
    assert [t.column("event_id").to_pylist() for t in Reading(tmp_path / "log", EVENT_SCHEMA)] == [["e0", "e1", "e2"], ["e3"]]
    assert not events.arrived(events.exported().last, 9)


def test_files_are_kept_as_long_as_the_settings_say(outbox: Outbox, events: SqliteEvents, tmp_path: Path) -> None:
    outbox.add(shown(1, HOUR))
    outbox.flush()
    events.append([StoredEvent(b"k" * 16, "e", "item", "play", HOUR)], 0)
    rolling = Rolling(tmp_path, outbox, events, impression_days=2.0, event_days=None)
    rolling.roll(HOUR, everything=True)
    found = [part.relative_to(tmp_path).parts[0] for log in ("impressions", "events") for part in parts(tmp_path / log)]
    rolling.roll(HOUR + 24 * 2 * HOUR_US + HOUR_US // 2)
    assert found == ["impressions", "events"] and len(parts(tmp_path / "impressions")) == 1
    rolling.roll(HOUR + 24 * 2 * HOUR_US + HOUR_US)
    assert not parts(tmp_path / "impressions") and len(parts(tmp_path / "events")) == 1


def test_events_go_by_their_own_time_though_they_came_late(events: SqliteEvents, tmp_path: Path) -> None:
    """Half of a file is nine days old when it comes, half is new."""
    events.append([StoredEvent(b"k" * 16, f"e{n}", "item", "play", HOUR - n % 2 * 9 * 24 * HOUR_US + n) for n in range(6)], 0)
    rolling = Rolling(tmp_path, None, events, impression_days=None, event_days=10.0)
    rolling.roll(HOUR, everything=True)
    left = []
    for hours in (23, 25, 10 * 24 - 1, 10 * 24 + 1):
        rolling.roll(HOUR + hours * HOUR_US)
        left.append([name for table in Reading(tmp_path / "events", EVENT_SCHEMA) for name in table.column("event_id").to_pylist()])
    assert left == [[f"e{n}" for n in range(6)], ["e0", "e2", "e4"], ["e0", "e2", "e4"], []]
    assert not list((tmp_path / "events").iterdir()), "folders are left"


def test_the_secret_of_cut_events_is_still_told(events: SqliteEvents, tmp_path: Path) -> None:
    events.append([StoredEvent(b"k" * 16, f"e{n}", "item", "play", HOUR - n * 9 * 24 * HOUR_US) for n in range(2)], 0)
    rolling = Rolling(tmp_path, None, events, None, event_days=10.0)
    rolling.roll(HOUR, everything=True)
    (part,) = parts(tmp_path / "events")
    before = pq.read_schema(part)
    rolling.roll(HOUR + 30 * HOUR_US)
    assert pq.read_metadata(part).num_rows == 1 and pq.read_schema(part).equals(before, check_metadata=True)
    assert part.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damaged", [False, True])
def test_what_was_made_of_lists_is_kept_no_longer_than_they_are(events: SqliteEvents, tmp_path: Path, damaged: bool) -> None:
    folder = tmp_path / "feedback"
    folder.mkdir()
    for name, hour in (("part-00000.parquet", 0), ("part-00001.parquet", 24)):
        times = pa.array([HOUR + hour * HOUR_US, HOUR + hour * HOUR_US + 1], pa.timestamp("us", "UTC"))
        pq.write_table(pa.table({"item_id": [["a"], ["b"]], "timestamp": times}), folder / name)
        if damaged:
            (folder / name).write_bytes(b"no table")
            os.utime(folder / name, ns=(0, (HOUR + hour * HOUR_US) * 1000))
    rolling = Rolling(tmp_path, None, events, impression_days=2.0, event_days=None, feedback=folder)
    left = []
    for hours in (47, 49, 73):
        rolling.roll(HOUR + hours * HOUR_US)
        left.append([path.name for path in sorted(folder.iterdir())])
    assert left == [["part-00000.parquet", "part-00001.parquet"], ["part-00001.parquet"], []]


def test_of_no_days_nothing_older_is_left(outbox: Outbox, events: SqliteEvents, tmp_path: Path) -> None:
    for number in (1, 2):
        outbox.add(shown(number, HOUR))
        outbox.flush()
        if number == 1:
            Rolling(tmp_path, outbox, events, 90.0, None).roll(HOUR, everything=True)
    assert lists(tmp_path / "impressions") == [1]
    discard_lists(tmp_path)
    assert outbox.oldest() is None
    Rolling(tmp_path, None, events, 0.0, None).roll(HOUR + 1)
    assert not parts(tmp_path / "impressions")
    held = b"".join(path.read_bytes() for path in tmp_path.glob("impressions.db*"))
    assert f"{2:032x}".encode() not in held


def test_decisions_are_written_at_the_next_look(events: SqliteEvents, tmp_path: Path) -> None:
    store, path = ConsentStore(tmp_path / "consent.db", b"fingerprint"), tmp_path / LIVE_CONSENT
    rolling = Rolling(tmp_path, None, events, None, None, store)
    rolling.tick()
    assert not path.exists()
    store.put(b"m" * 16, {"train": False}, HOUR)
    rolling.roll(HOUR)
    assert pq.read_table(path).select(["mark", "purpose", "granted"]).to_pylist() == [
        {"mark": b"m" * 16, "purpose": "train", "granted": False}
    ]  # fmt: skip
    store.close()


def roll_until_killed(folder: Path, first: int) -> None:
    """Each line on standard output is the number of a list that is in the outbox for good, as is the event of that number."""
    outbox, events = Outbox(folder / "impressions.db", "settings"), SqliteEvents(folder / "events.db", b"fingerprint")
    rolling = Rolling(folder, outbox, events, None, None)
    for number in range(first, 1_000_000_000, 5):
        for n in range(number, number + 5):
            outbox.add(shown(n, HOUR + n % 10_000_000 * 200_000_000))
        events.append([StoredEvent(b"k" * 16, str(n), "item", "play", n) for n in range(number, number + 5)], 0)
        outbox.flush()
        os.write(1, f"{number + 4}\n".encode())
        rolling.roll(HOUR + number % 10_000_000 * 200_000_000, everything=number % 3 == 0)


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.long)])
def test_kills_lose_and_double_nothing(tmp_path: Path, kills: int) -> None:
    rng, told = np.random.default_rng(0), {}
    for run in range(kills):
        command = [sys.executable, __file__, str(tmp_path), str(run * 10_000_000)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(rng.integers(4, 12))]
            time.sleep(float(rng.uniform(0, 0.03)))
            process.kill()
            lines += process.stdout.read().split(b"\n")[:-1]
            assert process.wait(30) == -9, "it ended by itself"
        told[run] = int(lines[-1])
    outbox = Outbox(tmp_path / "impressions.db", "settings")
    events = SqliteEvents(tmp_path / "events.db", b"fingerprint")
    Rolling(tmp_path, outbox, events, None, None).roll(HOUR, everything=True)
    outbox.close()
    events.close()
    names = [int(name) for table in Reading(tmp_path / "events", EVENT_SCHEMA) for name in table.column("event_id").to_pylist()]
    for found in (lists(tmp_path / "impressions"), names):
        for run, last in told.items():
            own = sorted(number for number in found if number // 10_000_000 == run)
            assert own == list(range(run * 10_000_000, run * 10_000_000 + len(own))) and own[-1] >= last
    assert len(parts(tmp_path / "impressions")) > 3 * kills, "it hardly wrote"


if __name__ == "__main__":
    roll_until_killed(Path(sys.argv[1]), int(sys.argv[2]))
