"""A log that arrives event by event makes the same users as the same log read as a file."""

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.bounds import Limits
from serving.events import Retention
from serving.profiles import Profiles
from serving.retriever import Retriever
from serving.sqlite_events import SqliteEvents
from serving.user_state import EVENTS, ITEMS, TIMES, UserHistories
from towers.bundle import Bundle, current
from towers.columns import ITEM_ROWS
from towers.encoder import UserRow
from towers.identity import UserKeys
from training.interactions import Interactions
from training.sources import open_source

KEPT = 1000
"""export.history_events, and serving.user_events: both sides keep as many."""
EPOCH = datetime.fromtimestamp(0, UTC)


def until(moment_us: int, histories: pa.Table) -> pa.Table:
    """The histories as they were exported at a moment of the past."""
    rows = histories.to_pylist()
    for row in rows:
        kept = [i for i, time in enumerate(row[TIMES]) if time < moment_us]
        for name in (ITEMS, ITEM_ROWS, EVENTS, TIMES):
            row[name] = [row[name][i] for i in kept]
    return pa.Table.from_pylist(rows, histories.schema)


@pytest.mark.parametrize("share", [0.0, 0.7], ids=["from the first event on", "after an export"])
def test_the_streams_users_equal_the_batchs(spine: Any, data: Interactions, tmp_path: Path, share: float) -> None:
    path = spine.run_dir / "export" / "histories.parquet"
    exported = pq.read_table(path)
    times = np.concatenate([np.array(row, np.int64) for row in exported.column(TIMES).to_pylist()])
    moment = int(np.quantile(times, share)) if share else 0
    keys = UserKeys.open(str(spine.key_file))
    with closing(SqliteEvents(tmp_path / "events.db", keys.fingerprint(), Retention(KEPT))) as events:
        profiles = Profiles(keys, UserHistories(until(moment, exported)), events, KEPT)
        retriever = Retriever.load(Bundle.open(current(spine.run_dir / "bundles")), profiles, Limits(max_events=500))
        replay(spine, retriever, moment - 86_400_000_000)  # the last day before the export comes again
        now, order = int(data.timestamp.max()), data.schema.order
        found = {key: profiles.get(key, order, now + 1)[0] for key in exported.column("user_key").to_pylist()}
    rows = []
    for expected in exported.to_pylist():
        user = found[expected["user_key"]]
        assert user is not None
        assert (list(user.items), list(user.events), list(user.timestamps)) == (expected[ITEMS], expected[EVENTS], expected[TIMES])
        rows.append(UserRow(user.items, user.events, user.timestamps, now, {}, user.features))
    vectors_UD = retriever.encoder.users(rows).vectors_BHD[:, 0]
    users = spine.exported("users")
    place = {key: row for row, key in enumerate(users.column("user_key").to_pylist())}
    batch_UD = np.array(users.column("embedding").to_pylist(), np.float32)[[place[key] for key in found]]
    np.testing.assert_allclose(vectors_UD, batch_UD, atol=1e-5)
    assert np.ptp(batch_UD, axis=0).max() > 0.1, "users all alike would make any comparison pass"


def replay(spine: Any, retriever: Retriever, since_us: int) -> None:
    """Post the log's events, out of order, in batches of which every third comes twice."""
    log = pa.concat_tables(open_source(spine.config().data).interactions()).to_pylist()
    rng = np.random.default_rng(0)
    # out of order as networks make it: each event up to a few hundred places from its own; ties keep theirs, as nothing but their
    # arrival tells which was first
    late = {(row["user_id"], row["timestamp"]): rng.uniform(0, 300) for row in log}
    log = [row for _, row in sorted(enumerate(log), key=lambda pair: pair[0] + late[pair[1]["user_id"], pair[1]["timestamp"]])]
    sent = [
        {"user_id": row["user_id"], "item_id": row["item_id"], "event_type": row["event_type"], "timestamp": row["timestamp"]}
        for row in log
        if (row["timestamp"] - EPOCH) // timedelta(microseconds=1) >= since_us
    ]
    assert len(sent) > 500
    for start in range(0, len(sent), 500):
        for _ in range(1 + (start % 1500 == 0)):
            retriever.add_events(sent[start : start + 500])
