"""Users without live events are not looked up, and none who has some is ever missed: not after a crash, a backup or a lost file."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import live_users
from serving.events import NOTHING, StoredEvent
from serving.live_users import LiveUsers
from serving.sqlite_events import SqliteEvents

ANN, BEN, CAT = b"a" * 16, b"b" * 16, b"c" * 16
NOW = 10**15
SECRET = b"0123456789abcdef"


def event(user: bytes, number: int = 0) -> StoredEvent:
    return StoredEvent(user, str(number), f"item {number}", "play", NOW + number)


def count(store: SqliteEvents, user: bytes) -> int:
    return len(store.history(user, NOW).items)


@given(st.sets(st.binary(min_size=16, max_size=16), max_size=30), st.binary(min_size=16, max_size=16))
def test_a_set_that_misses_nobody(tmp_path_factory: pytest.TempPathFactory, users: set[bytes], other: bytes) -> None:
    told = LiveUsers(tmp_path_factory.mktemp("users") / "events.users")
    told.note(users, 1)
    assert all(told.may_have(user) for user in users)
    assert told.may_have(other) == any(int.from_bytes(user[:3]) >> 1 == int.from_bytes(other[:3]) >> 1 for user in users)
    told.close()


def test_who_has_no_events_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteEvents(tmp_path / "events.db", SECRET)
    store.append([event(ANN)], NOW)
    read: list[bytes] = []
    real = store._database.read
    monkeypatch.setattr(store._database, "read", lambda query, values: read.append(values[0]) or real(query, values))
    assert store.history(BEN, NOW) == NOTHING and count(store, ANN) == 1 and read == [ANN]
    store.close()
    assert stat.S_IMODE(os.stat(tmp_path / "events.users").st_mode) == 0o600


def test_another_process_tells_of_its_users(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    store = SqliteEvents(path, SECRET)
    assert count(store, ANN) == 0
    code = f"""
from pathlib import Path
from serving.events import StoredEvent
from serving.sqlite_events import SqliteEvents
SqliteEvents(Path({str(path)!r}), {SECRET!r}).append([StoredEvent({ANN!r}, "1", "item", "play", {NOW})], {NOW})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert count(store, ANN) == 1
    store.close()


@pytest.mark.parametrize("lost", ["file", "pages", "half of it"])
def test_what_was_lost_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    store = SqliteEvents(tmp_path / "events.db", SECRET)
    store.append([event(ANN), event(BEN)], NOW)
    store.close()
    users = tmp_path / "events.users"
    if lost == "file":
        users.unlink()
    elif lost == "pages":  # the machine went down before they were written
        users.write_bytes(users.read_bytes()[:256].ljust(users.stat().st_size, b"\0"))
        monkeypatch.setattr(live_users, "_boot", lambda: "another start")
    else:
        users.write_bytes(users.read_bytes()[:300])
    store = SqliteEvents(tmp_path / "events.db", SECRET)
    assert count(store, ANN) == count(store, BEN) == 1 and store.history(CAT, NOW) == NOTHING
    store.close()


@pytest.mark.parametrize("same_count", [False, True])
def test_a_backup_brings_users_back(tmp_path: Path, same_count: bool) -> None:
    store = SqliteEvents(tmp_path / "events.db", SECRET)
    store.append([event(ANN)], NOW)
    store.close()
    shutil.copy(tmp_path / "events.db", tmp_path / "backup")
    (tmp_path / "events.users").unlink()
    (tmp_path / "events.db").unlink()
    store = SqliteEvents(tmp_path / "events.db", SECRET)
    store.append([event(BEN)] if same_count else [event(BEN), event(CAT)], NOW)
    store.close()
    shutil.copy(tmp_path / "backup", tmp_path / "events.db")
    store = SqliteEvents(tmp_path / "events.db", SECRET)
    assert count(store, ANN) == 1
    store.close()


def test_users_can_be_found_anew(tmp_path: Path) -> None:
    store = SqliteEvents(tmp_path / "events.db", SECRET)
    store.append([event(ANN)], NOW)
    users = tmp_path / "events.users"
    with users.open("r+b") as file:
        file.seek(256)
        file.write(bytes(users.stat().st_size - 256))
    assert count(store, ANN) == 0
    store.find_users()
    assert count(store, ANN) == 1
    store.close()


def test_a_batch_that_fails_is_no_harm(tmp_path: Path) -> None:
    store = SqliteEvents(tmp_path / "events.db", SECRET)
    with pytest.raises(UnicodeEncodeError):
        store.append([StoredEvent(ANN, "1", "\ud800", "play", NOW)], NOW)
    store.close()
    store = SqliteEvents(tmp_path / "events.db", SECRET)
    assert count(store, ANN) == 0 and store.append([event(ANN)], NOW) == 1 and count(store, ANN) == 1
    store.close()
