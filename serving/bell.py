"""A number in a small file that all processes of a service see at once: it tells them that something else is to be read again."""

import fcntl
import mmap
import os
from pathlib import Path

from towers.disk import allocate
from towers.errors import DataError

BELL_FILE = "bell"
"""Its name in the service's state_dir."""


class Bell:
    """Rung by one process, heard by all: looking costs less than a microsecond, so every request does.

    Raises:
        DataError: the file cannot be opened, or the disk has no room for it.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                allocate(self._handle, mmap.PAGESIZE)
                self._map = mmap.mmap(self._handle, mmap.PAGESIZE)
            except OSError:
                os.close(self._handle)
                raise
        except OSError as error:
            raise DataError(f"state {path} cannot be opened ({error}); set serving.state_dir to a folder that can be written") from error
        self._rung = memoryview(self._map).cast("Q")

    def rung(self) -> int:
        """How often it was rung."""
        found: int = self._rung[0]
        return found

    def ring(self) -> None:
        """To be called once what is to be read again is on the disk."""
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        try:
            self._rung[0] += 1
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the file."""
        self._rung.release()
        self._map.close()
        os.close(self._handle)
