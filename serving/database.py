"""SQLite files of the service's state: opened alike by every store, shared by processes."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from towers.errors import ConfigError, DataError, StorageError

BUSY_S = 10.0
"""How long a writer waits for another process's transaction, which takes milliseconds."""

ANSWER_S, TICK_S = 2.0, 0.05
"""The same where a caller waits for the answer, and where it is tried again at the next tick."""

_PASSING = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN
)  # fmt: skip
"""What the disk or another process says no with, not the statement."""

_LOG_BYTES = 4 << 20
"""Size of the log at which it is moved into the file."""


class _Closable(Protocol):
    def close(self) -> None: ...


_C = TypeVar("_C", bound=_Closable)


@contextmanager
def kept(opened: _C) -> Iterator[_C]:
    """What stays open when the block ends well, and is closed where it fails: nobody owns it then."""
    try:
        yield opened
    except BaseException:
        opened.close()
        raise


class Database:
    """A connection to a write-ahead-logged file that reads and one that writes, each used by one thread at a time: no reader waits for a
    writer.

    What `transaction` has committed survives the death of the process at any moment. Power loss may take the last commits and damages
    nothing (synchronous=NORMAL). Deleted content is overwritten (secure_delete); `rewrite` and `checkpoint` remove what else is left of it.

    Args:
        path: the file; made with its folder, readable by this user alone.
        schema: `CREATE ... IF NOT EXISTS` statements.
        page_bytes: of a new file; large ones suit large rows, of which each takes whole pages otherwise.

    Raises:
        DataError: it cannot be opened, or is no database.
    """

    def __init__(self, path: Path, schema: Sequence[str], page_bytes: int = 4096) -> None:
        self.path = path
        self._lock, self._writing = threading.Lock(), threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # only where it is new: closing a file takes away every lock that this process has on it, those of other connections too, and
            # the next process to close it would take itself for the last and remove the log under them
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            with kept(_connected(path)) as self._writer:
                self._writer.execute(f"PRAGMA page_size={page_bytes}")
                _log_ahead(self._writer)
                for pragma in ("synchronous=NORMAL", "secure_delete=ON"):
                    self._writer.execute(f"PRAGMA {pragma}")
                (found,) = self._writer.execute("PRAGMA page_size").fetchone()
                self._writer.execute(f"PRAGMA wal_autocheckpoint={_LOG_BYTES // found}")
                with self._whole():
                    for statement in schema:
                        self._writer.execute(statement)
                self._connection = _connected(path)
        except (OSError, sqlite3.OperationalError) as error:
            raise DataError(f"state {path} cannot be opened ({error}); set serving.state_dir to a folder that can be written") from error
        except sqlite3.Error as error:
            raise DataError(
                f"state {path} cannot be opened ({error}); put it back from a backup, or set serving.state_dir to another folder"
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write that other processes see whole or not at all; committed when the block ends, undone when it raises.

        Raises:
            StorageError: the disk is full or fails, or another process writes for longer than is waited; it was undone.
        """
        with self._writing:
            try:
                with self._whole():
                    yield self._writer
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _PASSING:
                    raise
                raise StorageError(f"{self.path.name}: {error}; nothing was stored, and it may be sent again") from error

    @contextmanager
    def _whole(self) -> Iterator[None]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:  # a full disk may have undone it already
                self._writer.execute("ROLLBACK")
            raise

    def wait_at_most(self, seconds: float) -> None:
        """How long a write waits from now on for another process's."""
        self._writer.execute(f"PRAGMA busy_timeout={round(1000 * seconds)}")

    def read(self, query: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """All rows of a query, as of one moment."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def rewrite(self) -> None:
        """Write the whole file anew, row by row. Where rows once moved to another page, their bytes stand on in the old one, and no later
        deletion reaches them there. Others read meanwhile; who writes waits."""
        with self._writing:
            self._writer.execute("VACUUM")

    def checkpoint(self) -> bool:
        """Move the log into the file and empty it; whether that was done, which a reader in another process can prevent."""
        with self._writing:
            ((busy, *_),) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return not busy

    def claim(self, secret: bytes) -> None:
        """Note, in the table `facts` (name, value) of this file, the secret that its users are keyed with.

        Args:
            secret: its fingerprint.

        Raises:
            ConfigError: the file has noted another.
        """
        with self.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO facts VALUES ('secret', ?)", (secret,))
            (found,) = connection.execute("SELECT value FROM facts WHERE name = 'secret'").fetchone()
        if found != secret:
            raise ConfigError(
                f"{self.path}: its users were keyed with another secret, so every one of them would be unknown. Point serving.key_file or"
                " $TOWERS_KEY_FILE at the file it was filled with, or set serving.state_dir to another folder"
            )

    def close(self) -> None:
        """Release the file; in the process that opened it."""
        with self._lock, self._writing:
            self._connection.close()
            self._writer.close()


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Write ahead from now on. Where others do the same to a new file, SQLite does not wait for them, but says that it is locked."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.005)


def _connected(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions begin and end where `transaction` says, not where the driver guesses
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
