"""Which users may have live events: a bit each in a small file that all processes map, so that most requests need not ask the database."""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from towers.disk import allocate
from towers.errors import DataError

_BITS = 23
"""Of a user's key, which is a keyed hash: with a million users who have live events every ninth of the others is looked up too."""

_HEADER, _TAKEN = 256, 8
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class LiveUsers:
    """A set that may hold more users than it was told, never fewer; a bit stays when events go. Written to by whoever holds the
    database's write lock.

    It is worth what the database beside it says: the file names the database, how many events that had taken when a user was last noted,
    and the start of the machine since when no page of it can have been lost. Where one of these differs the set has to be filled anew.

    Args:
        path: the file, made where it is absent, readable by this user alone.

    Raises:
        DataError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        size = _HEADER + (1 << _BITS >> 3)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                found = os.fstat(handle).st_size
                allocate(handle, size)
                self._map = mmap.mmap(handle, size)
                if found not in (0, size):
                    self._map[:_HEADER] = bytes(_HEADER)  # part of it is lost
            finally:
                os.close(handle)
        except OSError as error:
            raise DataError(f"state {path} cannot be opened ({error}); set serving.state_dir to a folder that can be written") from error

    def may_have(self, user_key: bytes) -> bool:
        """False only where the database holds no event of the user."""
        place = _place(user_key)
        return bool(self._map[_HEADER + (place >> 3)] >> (place & 7) & 1)

    def note(self, user_keys: Iterable[bytes], taken: int) -> None:
        """Users have events from the commit on that is to follow, with which the database has taken so many."""
        for user_key in user_keys:
            place = _place(user_key)
            self._map[_HEADER + (place >> 3)] |= 1 << (place & 7)
        self._map[:_TAKEN] = taken.to_bytes(_TAKEN, "little")

    def holds(self, name: str, taken: int) -> bool:
        """Whether it knows all users of the database of this name that has taken so many events."""
        boot = _boot()
        return bool(boot) and self._map[:_HEADER] == _header(name, boot, taken)

    def fill(self, user_keys: Iterable[bytes], name: str, taken: int) -> None:
        """Know these users of a database; others that were noted stay, for processes may be looking."""
        self.note(user_keys, taken)
        self._map[:_HEADER] = _header(name, _boot(), taken)

    def close(self) -> None:
        """Release the file."""
        self._map.close()


def _place(user_key: bytes) -> int:
    return int.from_bytes(user_key[:3]) >> (24 - _BITS)


def _header(name: str, boot: str, taken: int) -> bytes:
    return (taken.to_bytes(_TAKEN, "little") + f"{name} {boot}".encode()).ljust(_HEADER, b"\0")


def _boot() -> str:
    """Another one after each start of the machine; empty where the system does not tell."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
