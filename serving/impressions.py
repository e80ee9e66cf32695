"""What was shown to whom: a row for each list, written to SQLite from a thread, with all it takes to compute the list again."""

import sqlite3
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from numpy.typing import NDArray

from serving.asked import Known
from serving.database import Database
from serving.messages import Item
from serving.selector import Policy, Selection

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS impressions (place INTEGER PRIMARY KEY, recommendation_id TEXT NOT NULL, timestamp INTEGER NOT NULL,
        user_key BLOB, row TEXT NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS impressions_by_list ON impressions (recommendation_id)",
)
_JSON = msgspec.json.Encoder()
_MOST_WAITING = 100_000


class Versions(NamedTuple):
    """What made a list; `item_changes` is the generation of the last change of items that the catalogue knew."""

    model_version: str
    index_version: str
    item_changes: int


class Listed(NamedTuple):
    """A list and how it was chosen."""

    policy: Policy
    candidate_count: int
    chosen: Selection
    items: Sequence[Item]


class Shown(NamedTuple):
    """A list as it was shown; becomes JSON when it is written.

    Attributes:
        kind: `recommend`, `recommend_batch` or `rerank`.
        row: of a batch; 0 elsewhere.
        request: as it was sent, but for the user's id: history, context, preferences, filter, exclusions.
    """

    kind: str
    row: int
    recommendation_id: str
    known: Known
    mode: str
    versions: Versions
    listed: Listed
    request: msgspec.Struct


class Outbox:
    """Rows wait in memory for `flush`, which the engine calls every tenth of a second: what a killed process loses is that much.

    Args:
        path: the SQLite file; shared by processes.
        config_hash: of the settings that lists depend on.
        newest: rows kept; older ones are deleted.

    Attributes:
        lost: rows that could not be written, since the start.

    Raises:
        DataError: the file cannot be used.
    """

    def __init__(self, path: Path, config_hash: str, newest: int) -> None:
        self._database = Database(path, _SCHEMA)
        self._config_hash, self._newest = config_hash, newest
        self._waiting: deque[Shown] = deque()
        self._writing = threading.Lock()
        self.lost = 0

    def add(self, shown: Shown) -> None:
        """Takes about a microsecond; never waits for the disk."""
        self._waiting.append(shown)

    def flush(self) -> None:
        """Write what waits. A disk that is full or busy is tried again; past 100,000 rows the oldest are dropped and counted."""
        with self._writing:
            rows = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not rows:
                return
            try:
                self._write(rows)
            except sqlite3.Error:
                dropped = max(0, len(rows) - _MOST_WAITING)
                self.lost += dropped
                self._waiting.extendleft(reversed(rows[dropped:]))
                raise

    def rows(self) -> list[dict[str, Any]]:
        """All that is written, oldest first."""
        return [msgspec.json.decode(str(row)) for (row,) in self._database.read("SELECT row FROM impressions ORDER BY place")]

    def close(self) -> None:
        """Write what waits, and release the file."""
        self.flush()
        self._database.close()

    def _write(self, rows: list[Shown]) -> None:
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO impressions (recommendation_id, timestamp, user_key, row) VALUES (?, ?, ?, ?)",
                [(shown.recommendation_id, shown.known.now, shown.known.logged_key, self._json(shown)) for shown in rows],
            )
            connection.execute("DELETE FROM impressions WHERE place <= (SELECT max(place) FROM impressions) - ?", (self._newest,))

    def _json(self, shown: Shown) -> str:
        key, listed = shown.known.logged_key, shown.listed
        fields = {
            "recommendation_id": shown.recommendation_id,
            "kind": shown.kind,
            "row": shown.row,
            "timestamp": shown.known.now,
            "user_key": None if key is None else key.hex(),
            "consent_mask": None if shown.known.user_key is None else shown.known.consent,
            "arrived": shown.known.arrived,
            "mode": shown.mode,
            "model_version": shown.versions.model_version,
            "index_version": shown.versions.index_version,
            "item_changes": shown.versions.item_changes,
            "config_hash": self._config_hash,
            "policy": asdict(listed.policy),
            "k": listed.policy.k,
            "candidate_count": listed.candidate_count,
            "item_id": [item.item_id for item in listed.items],
            "score": _plain(listed.chosen.scores_k),
            "propensity": _plain(listed.chosen.propensities_k),
            "request": _without_id(shown.request),
        }
        return _JSON.encode(fields).decode()


def _plain(values: NDArray[Any]) -> list[float]:
    numbers: list[float] = values.tolist()
    return numbers


def _without_id(request: msgspec.Struct) -> dict[str, Any]:
    """What was asked; defaults, which the reader of the row knows, are left out."""
    told: dict[str, Any] = msgspec.to_builtins(request)
    del told["user_id"]
    return {name: value for name, value in told.items() if value not in (None, [], {})}
