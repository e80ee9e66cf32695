"""Decisions that users make while the service runs, on disk and shared by processes.

They stand under a mark of the user's key, not under the key: a refusal outlives the wish to be forgotten, and nothing else of the user
does.
"""

from collections.abc import Mapping
from pathlib import Path

from serving.database import ANSWER_S, Database, kept
from towers.live_consent import Decision, generation_of, write_decisions

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS decisions (mark BLOB NOT NULL, purpose TEXT NOT NULL, granted INTEGER NOT NULL,
        timestamp INTEGER NOT NULL, generation INTEGER NOT NULL, PRIMARY KEY (mark, purpose)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS decisions_by_generation ON decisions (generation)",
    # counted apart: a number is never given twice, though decisions leave, else who has read up to it would miss the second
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "INSERT OR IGNORE INTO facts SELECT 'generation', coalesce(max(generation), 0) FROM decisions",
)
_NEXT = "UPDATE facts SET value = value + 1 WHERE name = 'generation'"
_PUT = """INSERT INTO decisions SELECT ?, ?, ?, ?, value FROM facts WHERE name = 'generation'
    ON CONFLICT (mark, purpose)
    DO UPDATE SET granted = excluded.granted, timestamp = excluded.timestamp, generation = excluded.generation"""

CONSENT_FILE = "consent.db"
"""Its name in the service's state_dir."""

Decisions = dict[str, tuple[bool, int]]
"""By purpose: whether it is granted, and when that was decided, microseconds UTC."""


class ConsentStore:
    """The last decision of each user about each purpose, in one SQLite file; kept when a method returns.

    Args:
        path: the SQLite file, made where it is absent.
        secret: fingerprint of the secret that user keys are made with.

    Raises:
        ConfigError: the file's users were keyed with another secret.
        DataError: the file cannot be used.
    """

    def __init__(self, path: Path, secret: bytes) -> None:
        self._secret = secret
        with kept(Database(path, _SCHEMA)) as self._database:
            self._database.claim(secret)
            self._database.wait_at_most(ANSWER_S)

    def put(self, mark: bytes, granted: Mapping[str, bool], now: int) -> None:
        """Note a user's decisions; `now` in microseconds UTC."""
        with self._database.transaction() as connection:
            connection.execute(_NEXT)
            connection.executemany(_PUT, [(mark, purpose, int(given), now) for purpose, given in granted.items()])

    def since(self, generation: int) -> tuple[dict[bytes, Decisions], int]:
        """Decisions after a generation, by mark, and the generation of the last one."""
        rows = self._database.read(
            "SELECT mark, purpose, granted, timestamp, generation FROM decisions WHERE generation > ?", (generation,)
        )
        found: dict[bytes, Decisions] = {}
        for mark, purpose, granted, timestamp, number in rows:
            found.setdefault(bytes(mark), {})[str(purpose)] = (bool(granted), int(timestamp))  # type: ignore[call-overload]
            generation = max(generation, int(number))  # type: ignore[call-overload]
        return found, generation

    def forget(self, moments: Mapping[bytes, int]) -> int:
        """Remove what users have granted up to a moment, by mark; what they refused stays refused. How many decisions went."""
        with self._database.transaction() as connection:
            query = "DELETE FROM decisions WHERE mark = ? AND granted AND timestamp <= ?"
            gone = sum(connection.execute(query, row).rowcount for row in moments.items())
            if gone:
                connection.execute(_NEXT)
        self._database.checkpoint()
        return gone

    def export(self, path: Path) -> bool:
        """Write all decisions to a file for the training jobs (`towers.live_consent`), unless it has them; whether it was written.

        One process does it at a time; the caller sees to that.
        """
        ((number,),) = self._database.read("SELECT value FROM facts WHERE name = 'generation'")
        generation = int(number)  # type: ignore[call-overload]
        if generation == generation_of(path):
            return False
        found, _ = self.since(0)  # what came since that number was read is in it, and is written again the next time
        rows = (Decision(mark, purpose, *told) for mark, decisions in found.items() for purpose, told in decisions.items())
        write_decisions(path, rows, generation, self._secret)
        return True

    def close(self) -> None:
        """Release the file."""
        self._database.close()
