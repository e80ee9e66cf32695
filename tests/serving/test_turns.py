"""What is stored may wait for the disk or for another process: lists go on meanwhile, and the caller is told to come back."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.app import AppOptions, build_app
from serving.bell import Bell
from serving.database import Database
from serving.engine import Engine
from serving.events import DAY_US, Retention, StoredEvent
from serving.item_changes import ItemChanges
from serving.metrics import Metrics
from serving.retriever import Retriever
from serving.routes import ROUTE_NAMES
from serving.sqlite_events import PURGE_ROWS, SqliteEvents
from serving.standing import ConsentTable, Standing
from tests.conftest import full
from towers.errors import StorageError
from towers.identity import UserKeys

SECRET = b"0123456789abcdef"
EVENT = {"events": [{"user_id": "u", "item_id": "i", "event_id": "1"}]}
NOW = 10**15


@contextmanager
def kept_in(folder: Path, retriever: Retriever) -> Iterator[Any]:
    """A service whose events and items are in a folder."""
    with pytest.MonkeyPatch.context() as patched:
        events, items = SqliteEvents(folder / "events.db", SECRET, busy_s=0.5), ItemChanges(folder / "items.db")
        patched.setattr(retriever.profiles, "events", events)
        yield build_app(Engine(retriever, items), AppOptions(Metrics(ROUTE_NAMES)))
        events.close()
        items.close()


@pytest.mark.anyio
async def test_a_file_that_another_process_locks_holds_up_nobody_else(retriever: Retriever, tmp_path: Path) -> None:
    with kept_in(tmp_path, retriever) as app, closing(sqlite3.connect(tmp_path / "events.db", isolation_level=None)) as other:
        await lists_go_on(app, other)


async def lists_go_on(app: Any, other: sqlite3.Connection) -> None:
    other.execute("BEGIN IMMEDIATE")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        waiting = [asyncio.create_task(client.post("/v1/events", json=EVENT)) for _ in range(4)]
        await asyncio.sleep(0.05)
        started = time.monotonic()
        assert (await client.get("/health/live")).status_code == (await client.post("/v1/recommend", json={"k": 1})).status_code == 200
        assert time.monotonic() - started < 0.4 and not any(task.done() for task in waiting)
        for reply in await asyncio.gather(*waiting):
            assert reply.status_code == 503 and reply.headers["retry-after"] == "1" and "locked" in reply.json()["detail"]
            assert reply.headers["content-type"] == "application/problem+json"
        other.execute("ROLLBACK")
        assert (await client.post("/v1/events", json=EVENT)).json()["added"] == 1


@pytest.mark.anyio
async def test_what_a_full_disk_does_not_take_is_told(retriever: Retriever, tmp_path: Path, small_disk: Callable[[Path], None]) -> None:
    disk = tmp_path / "small"
    small_disk(disk)
    many = {"events": [{"user_id": f"u{n}", "item_id": "i" * 200, "event_id": str(n)} for n in range(100)]}
    with kept_in(disk, retriever) as app:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            with full(disk):
                for reply in (await client.post("/v1/events", json=many), await client.put("/v1/items/new", json={"attributes": {}})):
                    assert reply.status_code == 503 and "full" in reply.json()["detail"], reply.text
                assert (await client.post("/v1/recommend", json={"k": 1, "user_id": "u1"})).status_code == 200
            assert (await client.post("/v1/events", json=many)).json()["added"] == 100
            assert (await client.put("/v1/items/new", json={"attributes": {}})).status_code == 200


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db", ("CREATE TABLE IF NOT EXISTS told (word TEXT)",))
    with database.transaction() as connection:
        connection.execute("INSERT INTO told VALUES ('new')")
        found: list[Any] = []
        reading = threading.Thread(target=lambda: found.append(database.read("SELECT * FROM told")), daemon=True)
        reading.start()
        reading.join(10)
        assert found == [[]]
    assert database.read("SELECT * FROM told") == [("new",)]
    with pytest.raises(sqlite3.OperationalError, match="no such table"), database.transaction() as connection:
        connection.execute("INSERT INTO absent VALUES (1)")
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        database.wait_at_most(0.01)
        with pytest.raises(StorageError, match=r"state\.db: database is locked"), database.transaction():
            pass
        other.execute("ROLLBACK")
    with database.transaction():
        pass
    database.close()


def test_what_expired_goes_in_parts(tmp_path: Path) -> None:
    store = SqliteEvents(tmp_path / "events.db", SECRET, Retention(5000, 1.0))
    store.append([StoredEvent(bytes([n % 50] * 16), str(n), f"i{n}", "play", NOW + n) for n in range(PURGE_ROWS + 10)], NOW)
    store.append([StoredEvent(b"s" * 16, "stays", "i", "play", NOW + 5 * DAY_US)], NOW)
    later = NOW + 5 * DAY_US
    assert [store.purge_some(later) for _ in range(3)] == [PURGE_ROWS, 10, 0] and store.history(b"s" * 16, later).items
    store.close()


def test_no_request_reads_the_table_of_decisions(tmp_path: Path) -> None:
    """A large one takes seconds: it is read where the service looks after itself, and until then the former one counts."""
    keys, path = UserKeys(b"k" * 32), tmp_path / "consent.csv"
    path.write_text("user_id,purpose,granted,timestamp\nu,train,true,1\n")
    bell = Bell(tmp_path / "bell")
    standing = Standing(ConsentTable(path, keys), bell=bell)
    before = standing.mask(keys.key("u"))
    path.write_text("user_id,purpose,granted,timestamp\nu,train,false,2\n")
    bell.ring()
    assert standing.mask(keys.key("u")) == before != 0
    standing.refresh()
    assert standing.mask(keys.key("u")) == 0
    standing.close()
