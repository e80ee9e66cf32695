"""A hundred of ten thousand people forgotten at once: no byte of them is left, and it counts at once."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.config import ServingConfig
from serving.events import StoredEvent
from serving.raw_scan import RawIds
from serving.rights import Rights
from serving.sqlite_events import SqliteEvents
from towers.identity import SECRET_FINGERPRINT, UserKeys, mark
from towers.shards import embedding_column

USERS, LEAVING, EVENTS = 10_000, 100, 10
EFFECT_S = 1.0


def everything(folder: Path) -> bytes:
    """All bytes below a folder, and all keys of its tables, which are compressed."""
    content = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    tables = [pq.read_table(path, columns=["user_key"], partitioning=None) for path in folder.rglob("*.parquet")]
    return b"\0".join([*content, *(key for table in tables for key in table["user_key"].to_pylist())])


def test_a_hundred_of_ten_thousand(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = ServingConfig(run_dir=str(run))
    config.serving.key_file = str(tmp_path / "key")
    keys = UserKeys.open(config.serving.key_file, create=True)
    users = [f"person-{i:05d}" for i in range(USERS)]
    of = sorted(map(keys.key, users))
    keyed: dict[str, Any] = {"user_key": pa.array(of, pa.binary(16))}
    lists = {"item_ids": [["i"] * EVENTS] * USERS, "event_types": [["play"] * EVENTS] * USERS, "timestamps": [list(range(EVENTS))] * USERS}
    (run / "export" / "users").mkdir(parents=True)
    pq.write_table(pa.table({**keyed, **lists}, metadata={SECRET_FINGERPRINT: keys.fingerprint()}), run / "export" / "histories.parquet")
    vectors = embedding_column(np.ones((USERS, 16), np.float32))
    pq.write_table(pa.table({**keyed, "embedding": vectors}), run / "export" / "users" / "part-00000.parquet")
    hour = run / "state" / "impressions" / "date=2026-01-01" / "hour=00"
    hour.mkdir(parents=True)
    times = pa.array(range(USERS), pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({**keyed, "timestamp": times}), hour / "part-a-000000000000001.parquet")
    store = SqliteEvents(run / "state" / "events.db", keys.fingerprint())
    for n in range(EVENTS):  # between rows of others: SQLite splits pages, and leaves copies of what it moves
        store.append([StoredEvent(key, str(n), f"i{n}", "play", 1_000 + n) for key in map(keys.key, users)], 2_000)
    leaving = [keys.key(user) for user in users[:: USERS // LEAVING]]
    wanted = RawIds([*leaving, *(key.hex().encode() for key in leaving), *(user.encode() for user in users)])
    assert set(leaving) <= wanted.within(everything(run))

    rights, other = Rights.open(config, keys), Rights.open(config, keys)
    effect_s: list[float] = []

    def watch() -> None:
        """When another process knows, from the wish on."""
        began = time.monotonic()
        while other.standing.forgotten(leaving[-1]) is None and time.monotonic() - began < 60:
            time.sleep(0.001)
        effect_s.append(time.monotonic() - began)

    watcher = threading.Thread(target=watch)
    watcher.start()
    receipt = rights.subjects.forget(leaving)
    watcher.join()
    assert wanted.within(everything(run) + (tmp_path / "key.receipts.jsonl").read_bytes()) == set()
    assert effect_s[0] < EFFECT_S
    assert receipt["rows"] == {
        "export/histories.parquet": LEAVING, "export/users/part-00000.parquet": LEAVING, "state/events.db": LEAVING * EVENTS,
        "state/impressions/date=2026-01-01/hour=00/part-a-000000000000001.parquet": LEAVING,
    }  # fmt: skip
    assert all(mark(key).hex() in (tmp_path / "key.receipts.jsonl").read_text() for key in leaving)
    stays = next(key for key in of if key not in set(leaving))
    assert len(store.history(stays, 3_000).items) == EVENTS and store.history(leaving[0], 3_000).items == ()
    store.close()
    rights.close()
    other.close()
    print(f"effect after {1e3 * effect_s[0]:.1f} ms")
