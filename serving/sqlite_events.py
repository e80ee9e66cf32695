"""Live events on disk, shared by processes: acknowledged after commit, read at every request."""

from collections.abc import Sequence
from pathlib import Path

from serving.database import Database
from serving.events import NOTHING, LiveHistory, Retention, StoredEvent
from towers.errors import ConfigError

_SCHEMA = (
    # the primary key is how rows lie on disk: a user's events side by side, in time order, equal ones once
    """CREATE TABLE IF NOT EXISTS events (
        user_key BLOB NOT NULL, timestamp INTEGER NOT NULL, item_id TEXT NOT NULL, event_type TEXT NOT NULL, arrival INTEGER NOT NULL,
        event_id TEXT NOT NULL, recommendation_id TEXT, facts TEXT,
        PRIMARY KEY (user_key, timestamp, item_id, event_type), UNIQUE (user_key, event_id)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS events_by_time ON events (timestamp)",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "INSERT OR IGNORE INTO facts VALUES ('arrivals', 0)",
)
_INSERT = "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_TRIM = """DELETE FROM events WHERE user_key = ?1 AND (timestamp, arrival) <
    (SELECT timestamp, arrival FROM events WHERE user_key = ?1 ORDER BY timestamp DESC, arrival DESC LIMIT 1 OFFSET ?2)"""
_READ = "SELECT item_id, event_type, timestamp, arrival FROM events WHERE user_key = ? AND timestamp >= ? ORDER BY timestamp, arrival"
_KEPT = "SELECT count(*) FROM events WHERE user_key = ? AND arrival > ?"


class SqliteEvents:
    """See `EventStore`; the file outlives the process.

    Args:
        path: the SQLite file, made where it is absent.
        secret: fingerprint of the secret that user keys are made with.
        retention: what is kept of a user.

    Raises:
        ConfigError: the file's users were keyed with another secret.
        DataError: the file cannot be used.
    """

    def __init__(self, path: Path, secret: bytes, retention: Retention | None = None) -> None:
        self._retention = retention or Retention()
        self._database = Database(path, _SCHEMA)
        with self._database.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO facts VALUES ('secret', ?)", (secret,))
        ((found,),) = self._database.read("SELECT value FROM facts WHERE name = 'secret'")
        if found != secret:
            self.close()
            raise ConfigError(
                f"{path}: its users were keyed with another secret, so every one of them would be unknown. Point serving.key_file or"
                " $TOWERS_KEY_FILE at the file it was filled with, or set serving.state_dir to another folder"
            )

    def append(self, events: Sequence[StoredEvent], now: int) -> int:
        since = self._retention.since(now)
        rows = [e for e in events if e.timestamp >= since]
        if not rows:
            return 0
        users = {e.user_key for e in rows}
        with self._database.transaction() as connection:
            (first,) = connection.execute("SELECT value FROM facts WHERE name = 'arrivals'").fetchone()
            connection.execute("UPDATE facts SET value = value + ? WHERE name = 'arrivals'", (len(rows),))
            connection.executemany(
                _INSERT,
                [
                    (e.user_key, e.timestamp, e.item_id, e.event_type, arrival, e.event_id, e.recommendation_id, e.facts)
                    for arrival, e in enumerate(rows, first + 1)
                ],
            )
            connection.executemany(_TRIM, [(user, self._retention.newest - 1) for user in users])
            return sum(connection.execute(_KEPT, (user, first)).fetchone()[0] for user in users)

    def history(self, user_key: bytes, now: int, arrived: int | None = None) -> LiveHistory:
        rows = self._database.read(_READ, (user_key, self._retention.since(now)))
        if arrived is not None:
            rows = [row for row in rows if row[3] <= arrived]  # type: ignore[operator]
        return LiveHistory(*zip(*rows, strict=True)) if rows else NOTHING

    def purge(self, now: int) -> int:
        with self._database.transaction() as connection:
            gone = connection.execute("DELETE FROM events WHERE timestamp < ?", (self._retention.since(now),)).rowcount
        if gone:
            self._database.checkpoint()
        return gone

    def close(self) -> None:
        """Release the file."""
        self._database.close()
