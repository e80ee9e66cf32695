"""What was shown to whom: a row for each list, with all it takes to compute the list again.

Rows go from memory to an outbox in SQLite, written from a thread; serving.rolling moves them on to Parquet.
"""

import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from numpy.typing import NDArray

from serving.asked import Asked
from serving.database import BUSY_S, TICK_S, Database, kept
from serving.item_texts import ids_of, scores_of
from serving.live_catalog import AnyCatalog
from serving.messages import Asker, Item
from serving.policy import Policy
from serving.selector import Selection
from towers.errors import StorageError

_SCHEMA = (
    # AUTOINCREMENT: a number is never given twice, though rows leave; files are named by them
    """CREATE TABLE IF NOT EXISTS waiting (place INTEGER PRIMARY KEY AUTOINCREMENT, timestamp INTEGER NOT NULL, user_key BLOB,
        row TEXT NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "INSERT OR IGNORE INTO facts VALUES ('name', lower(hex(randomblob(8))))",
)
OUTBOX_FILE = "impressions.db"
"""Its name in the service's state_dir."""
_PAGE_BYTES = 32_768
"""Rows of lists of a hundred take 5 KB: in pages of 4 KB, writing one costs twice as much."""
_JSON = msgspec.json.Encoder()
_MOST_WAITING, _MOST_BYTES = 100_000, 1 << 28
"""Of rows that the disk does not take: how many, and how large, before the oldest are dropped."""
_PAGE_ROWS = 1000


class Versions(NamedTuple):
    """What made a list.

    Attributes:
        item_changes: generation of the last change of items that the catalogue knew.
        blocked: digest of the items that no list held; None = there were none.
    """

    model_version: str
    index_version: str
    item_changes: int
    blocked: str | None = None


class Listed(NamedTuple):
    """A list and how it was chosen."""

    policy: Policy
    chosen: Selection
    items: Sequence[Item]


class Shown(NamedTuple):
    """A list as it was shown; becomes JSON when it is written.

    Attributes:
        kind: `recommend`, `recommend_batch` or `rerank`.
        row: of a batch; 0 elsewhere.
        request: as it was sent, but for the user's id: history, context, preferences, filter, exclusions.
        timestamp: microseconds UTC.
        catalog: names the candidates.
    """

    kind: str
    row: int
    recommendation_id: str
    request: Asker
    asked: Asked
    versions: Versions
    listed: Listed
    timestamp: int
    request_id: str | None
    catalog: AnyCatalog


class _Encoded(NamedTuple):
    """A row as it is written; once it is text, what the list was made of is let go, and its size is known."""

    timestamp: int
    user_key: bytes | None
    row: str


class Oldest(NamedTuple):
    """The first row of the outbox: its time (microseconds UTC), and how many there are at most."""

    timestamp: int
    rows: int


@dataclass(frozen=True)
class Waiting:
    """The first rows of the outbox, in the order in which they came: number, time (microseconds UTC) and JSON of each.

    Attributes:
        full: there are more, or just as many as were asked for.
    """

    places: list[int]
    timestamps: list[int]
    rows: list[str]
    full: bool


class Outbox:
    """Rows wait in memory for `flush`, which the engine calls every tenth of a second: what a killed process loses is that much.

    Args:
        path: the SQLite file; shared by processes.
        config_hash: of the settings that lists depend on.
        candidate_share: share of the lists whose candidates are kept too, chosen by their recommendation_id.
        forgotten: until when (microseconds UTC) what a user saw is not to be kept; see `Standing.forgotten`.

    Attributes:
        name: of this file among all others.
        lost: rows that could not be written, since the start.

    Raises:
        DataError: the file cannot be used.
    """

    def __init__(
        self, path: Path, config_hash: str, candidate_share: float = 0.0, forgotten: Callable[[bytes], int | None] = lambda key: None
    ) -> None:
        with kept(Database(path, _SCHEMA, _PAGE_BYTES)) as self._database:
            ((name,),) = self._database.read("SELECT value FROM facts WHERE name = 'name'")
            self.name = str(name)
        self._config_hash, self._candidate_share = config_hash, candidate_share
        self._forgotten = forgotten
        self._waiting: deque[Shown] = deque()
        self._encoded: deque[_Encoded] = deque()
        self._writing = threading.Lock()
        self.lost = 0

    def add(self, shown: Shown) -> None:
        """Takes about a microsecond; never waits for the disk."""
        self._waiting.append(shown)

    def flush(self, busy_s: float = TICK_S) -> None:
        """Write what waits. A disk that is full or busy is tried again; past 100,000 rows or 256 MiB the oldest are dropped and counted.

        Args:
            busy_s: seconds to wait for another process that writes: by default not for long, as items that change wait too.

        Raises:
            StorageError: nothing was written.
        """
        with self._writing:
            self._encoded.extend(self._encode(self._waiting.popleft()) for _ in range(len(self._waiting)))
            if not self._encoded:
                return
            try:
                self._database.wait_at_most(busy_s)
                self._write()
            except (sqlite3.Error, StorageError):
                self._drop()
                raise
            self._encoded.clear()

    def _drop(self) -> None:
        size = sum(sys.getsizeof(of.row) for of in self._encoded)
        while len(self._encoded) > _MOST_WAITING or size > _MOST_BYTES:
            size -= sys.getsizeof(self._encoded.popleft().row)
            self.lost += 1

    def oldest(self) -> Oldest | None:
        """The first row that is written; None where there is none."""
        found = self._database.read("SELECT timestamp, (SELECT max(place) FROM waiting) - place + 1 FROM waiting ORDER BY place LIMIT 1")
        return Oldest(*found[0]) if found else None  # type: ignore[arg-type]

    def waiting(self, most_rows: int, most_bytes: int) -> Waiting:
        """The first rows that are written, until they are so many or so large."""
        places, timestamps, rows, size = [0], [0], [""], 0
        while len(rows) <= most_rows and size < most_bytes:
            page = min(_PAGE_ROWS, most_rows + 1 - len(rows))
            found: list[Any] = self._database.read(
                "SELECT place, timestamp, row FROM waiting WHERE place > ? ORDER BY place LIMIT ?", (places[-1], page)
            )
            for place, timestamp, row in found:
                places.append(place)
                timestamps.append(timestamp)
                rows.append(row)
                size += len(row)
            if len(found) < page:
                return Waiting(places[1:], timestamps[1:], rows[1:], False)
        return Waiting(places[1:], timestamps[1:], rows[1:], True)

    def remove(self, places: Sequence[int]) -> None:
        """Rows that are kept elsewhere now."""
        with self._database.transaction() as connection:
            connection.executemany("DELETE FROM waiting WHERE place = ?", [(place,) for place in places])

    def discard(self) -> None:
        """Delete all rows that are written, and what is left of deleted ones."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM waiting")
        self._database.rewrite()
        self._database.checkpoint()

    def close(self) -> None:
        """Write what waits in memory, and release the file, which is done too where writing fails. Raises StorageError."""
        try:
            self.flush(BUSY_S)
        finally:
            self._database.close()

    def _encode(self, shown: Shown) -> _Encoded:
        return _Encoded(shown.timestamp, shown.asked.known.logged_key, self._json(shown))

    def _write(self) -> None:
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO waiting (timestamp, user_key, row) VALUES (?, ?, ?)", [row for row in self._encoded if self._stays(row)]
            )

    def _stays(self, row: _Encoded) -> bool:
        moment = None if row.user_key is None else self._forgotten(row.user_key)
        return moment is None or row.timestamp > moment

    def _json(self, shown: Shown) -> str:
        known, listed, request = shown.asked.known, shown.listed, shown.request
        fields = {
            "recommendation_id": shown.recommendation_id,
            "row": shown.row,
            "kind": shown.kind,
            "timestamp": shown.timestamp,
            "request_id": shown.request_id,
            "user_key": None if known.logged_key is None else known.logged_key.hex(),
            "profile": shown.asked.profile,
            "consent_mask": None if known.user_key is None else known.consent,
            "surface": request.surface,
            "channel": request.channel,
            "mode": shown.asked.mode,
            **shown.versions._asdict(),
            "config_hash": self._config_hash,
            "k": listed.policy.k,
            "item_id": ids_of(listed.items),
            "score": scores_of(listed.items),
            "propensity": _ones(len(listed.items)) if listed.policy.dials is None else _plain(listed.chosen.propensities_k),
            "temperature": 0.0 if listed.policy.dials is None else listed.policy.dials.temperature,
            "candidate_count": len(listed.chosen.considered.rows_C),
            "policy": _JSON.encode(listed.policy.to_row()).decode(),
            "now": known.now,
            "arrived": known.arrived,
            "request": _JSON.encode(_without_id(request)).decode(),
        }
        if chance(shown.recommendation_id) < self._candidate_share:
            fields["candidate_item_id"] = shown.catalog.ids(listed.chosen.considered.rows_C)
            fields["candidate_score"] = _plain(listed.chosen.considered.scores_C)
        return _JSON.encode(fields).decode()


def chance(recommendation_id: str) -> float:
    """A number in [0, 1) that is a list's own: the same wherever it is asked for, evenly spread over lists.

    >>> chance("80000000" + "0" * 24)
    0.5
    """
    return int(recommendation_id[:8], 16) / 2**32


@lru_cache(maxsize=1024)
def _ones(count: int) -> msgspec.Raw:
    """Propensities of a list of which nothing was drawn."""
    return msgspec.Raw(_JSON.encode([1.0] * count))


def _plain(values: NDArray[Any]) -> list[float]:
    numbers: list[float] = values.tolist()
    return numbers


def _without_id(request: Asker) -> dict[str, Any]:
    """What was asked; defaults, which the reader of the row knows, are left out."""
    told: dict[str, Any] = msgspec.to_builtins(request)
    del told["user_id"]
    return {name: value for name, value in told.items() if value not in (None, [], {})}
