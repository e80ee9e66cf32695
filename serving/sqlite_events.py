"""Live events on disk, shared by processes: acknowledged after commit, read at every request of those who have some."""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from serving.database import ANSWER_S, Database, kept
from serving.events import NOTHING, LiveHistory, Retention, Settle, StoredEvent, as_it_is
from serving.live_users import LiveUsers

_SCHEMA = (
    # the primary key is how rows lie on disk: a user's events side by side, in time order, equal ones once
    """CREATE TABLE IF NOT EXISTS events (
        user_key BLOB NOT NULL, timestamp INTEGER NOT NULL, item_id TEXT NOT NULL, event_type TEXT NOT NULL, arrival INTEGER NOT NULL,
        event_id TEXT NOT NULL, recommendation_id TEXT, facts TEXT,
        PRIMARY KEY (user_key, timestamp, item_id, event_type), UNIQUE (user_key, event_id)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS events_by_time ON events (timestamp)",
    "CREATE INDEX IF NOT EXISTS events_by_arrival ON events (arrival)",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "INSERT OR IGNORE INTO facts VALUES ('arrivals', 0), ('exported', 0), ('name', lower(hex(randomblob(8))))",
    "INSERT OR IGNORE INTO facts VALUES ('exported_hour', CAST(strftime('%s') AS INTEGER) / 3600)",
)
_INSERT = "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_TRIM = """DELETE FROM events WHERE user_key = ? AND arrival <= (SELECT value FROM facts WHERE name = 'exported')
    AND (timestamp, arrival) <
    (SELECT timestamp, arrival FROM events WHERE user_key = ? ORDER BY timestamp DESC, arrival DESC LIMIT 1 OFFSET ?)"""
_READ = """SELECT item_id, event_type, timestamp, arrival, facts FROM events
    WHERE user_key = ? AND timestamp >= ? ORDER BY timestamp, arrival"""
_ARRIVED = """SELECT user_key, item_id, timestamp, event_id, event_type, recommendation_id, facts, arrival FROM events
    WHERE arrival > ? ORDER BY arrival LIMIT ?"""
_NEWEST = """SELECT user_key, max(timestamp) FROM events WHERE arrival <= ? AND timestamp >= ? AND timestamp < ?
    GROUP BY user_key ORDER BY user_key"""
_PURGE = """DELETE FROM events WHERE (user_key, timestamp, item_id, event_type) IN
    (SELECT user_key, timestamp, item_id, event_type FROM events WHERE timestamp < ? LIMIT ?)"""
PURGE_ROWS = 2000
"""Expired events that are deleted in one transaction: a few hundredths of a second, in which other writers wait."""
_TRIMMED_AT_ONCE = 500
_TAKEN = "SELECT value FROM facts WHERE name = 'arrivals'"
_COPIED = "SELECT DISTINCT user_key FROM events WHERE arrival > ? AND arrival <= ?"
_KEPT = "SELECT count(*) FROM events WHERE user_key = ? AND arrival > ?"


class ArrivedEvent(NamedTuple):
    """An event and the number under which the store took it."""

    user_key: bytes
    item_id: str
    timestamp: int
    event_id: str
    event_type: str
    recommendation_id: str | None
    facts: str | None
    arrival: int


class Exported(NamedTuple):
    """How far events were copied elsewhere: the number of the last, and the hour (since 1970) of the last time."""

    last: int
    hour: int


class SqliteEvents:
    """See `EventStore`; the file outlives the process. Events that are not among a user's newest stay until they are copied elsewhere
    (`note_exported`), and `history` passes over them. One file beside it, `.users`, tells who has events (see `LiveUsers`); it may be
    deleted while nothing runs.

    Args:
        path: the SQLite file, made where it is absent.
        secret: fingerprint of the secret that user keys are made with.
        retention: what is kept of a user.
        busy_s: seconds that a write waits for another process's.

    Attributes:
        name: of this file among all others.

    Raises:
        ConfigError: the file's users were keyed with another secret.
        DataError: the file cannot be used.
    """

    def __init__(self, path: Path, secret: bytes, retention: Retention | None = None, busy_s: float = ANSWER_S) -> None:
        self._retention, self.secret = retention or Retention(), secret
        with kept(Database(path, _SCHEMA)) as self._database:
            self._database.claim(secret)
            self.name = str(self._fact("name"))
            with kept(LiveUsers(path.with_suffix(".users"))) as self._users:
                with self._database.transaction() as connection:
                    (taken,) = connection.execute(_TAKEN).fetchone()
                    known = self._users.holds(self.name, taken)
                if not known:
                    self.find_users()
                self._database.wait_at_most(busy_s)

    def find_users(self) -> None:
        """Find out anew who has events: to be called where a backup may have brought some back."""
        with self._database.transaction() as connection:
            (taken,) = connection.execute(_TAKEN).fetchone()
            users = connection.execute("SELECT DISTINCT user_key FROM events")
            self._users.fill((user for (user,) in users), self.name, taken)

    def append(self, events: Sequence[StoredEvent], now: int, settle: Settle = as_it_is) -> int:
        since = self._retention.since(now)
        fresh = [e for e in events if e.timestamp >= since]
        if not fresh:
            return 0
        with self._database.transaction() as connection:
            rows = [settled for e in fresh if (settled := settle(e)) is not None]
            users = {e.user_key for e in rows}
            (first,) = connection.execute(_TAKEN).fetchone()
            self._users.note(users, first + len(rows))  # before the commit: what is acknowledged is looked for in every process
            connection.execute("UPDATE facts SET value = value + ? WHERE name = 'arrivals'", (len(rows),))
            connection.executemany(
                _INSERT,
                [
                    (e.user_key, e.timestamp, e.item_id, e.event_type, arrival, e.event_id, e.recommendation_id, e.facts)
                    for arrival, e in enumerate(rows, first + 1)
                ],
            )
            self._trim(connection, users)
            return sum(connection.execute(_KEPT, (user, first)).fetchone()[0] for user in users)

    def history(self, user_key: bytes, now: int, arrived: int | None = None) -> LiveHistory:
        if not self._users.may_have(user_key):
            return NOTHING
        rows = self._database.read(_READ, (user_key, self._retention.since(now)))
        if arrived is not None:
            rows = [row for row in rows if row[3] <= arrived]  # type: ignore[operator]
        rows = rows[-self._retention.newest :]
        return LiveHistory(*zip(*rows, strict=True)) if rows else NOTHING

    def purge(self, now: int) -> int:
        gone = last = self.purge_some(now)
        while last == PURGE_ROWS:
            gone += (last := self.purge_some(now))
        return gone

    def purge_some(self, now: int) -> int:
        """The same of at most PURGE_ROWS events, so that nobody waits long for it; how many went: fewer once none is left."""
        with self._database.transaction() as connection:
            gone = connection.execute(_PURGE, (self._retention.since(now), PURGE_ROWS)).rowcount
        if 0 < gone < PURGE_ROWS:
            self._database.checkpoint()
        return gone

    def users(self, now: int, arrived: int) -> list[tuple[bytes, int]]:
        """Everybody who has events, before a moment and up to the one of a number: keys, ascending, and the time of the newest of them.

        Args:
            now: microseconds UTC.
            arrived: see `EventStore.history`.
        """
        return self._database.read(_NEWEST, (arrived, self._retention.since(now), now))  # type: ignore[return-value]

    def arrived(self, after: int, most: int) -> list[ArrivedEvent]:
        """Events of all users that came after the one of a number, at most so many, in the order in which they came."""
        return [ArrivedEvent(*row) for row in self._database.read(_ARRIVED, (after, most))]  # type: ignore[arg-type]

    def taken(self) -> int:
        """Number of the last event that was taken; some numbers before it are of repeated ones and name none."""
        return int(str(self._fact("arrivals")))

    def exported(self) -> Exported:
        """What `note_exported` was told last; nothing at first."""
        return Exported(int(str(self._fact("exported"))), int(str(self._fact("exported_hour"))))

    def note_exported(self, done: Exported) -> None:
        """Remember it, and delete of what was copied since the last time that which is not among a user's newest."""
        before = self.exported().last
        with self._database.transaction() as connection:
            connection.executemany("UPDATE facts SET value = ? WHERE name = ?", [(done.last, "exported"), (done.hour, "exported_hour")])
        users = [user for (user,) in self._database.read(_COPIED, (before, done.last))]
        for start in range(0, len(users), _TRIMMED_AT_ONCE):
            with self._database.transaction() as connection:  # short ones: who tells events waits
                self._trim(connection, users[start : start + _TRIMMED_AT_ONCE])

    def _trim(self, connection: sqlite3.Connection, users: Iterable[object]) -> None:
        connection.executemany(_TRIM, [(user, user, self._retention.newest - 1) for user in users])

    def close(self) -> None:
        """Release the files."""
        self._database.close()
        self._users.close()

    def _fact(self, name: str) -> object:
        ((found,),) = self._database.read("SELECT value FROM facts WHERE name = ?", (name,))
        return found
