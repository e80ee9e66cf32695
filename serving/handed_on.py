"""What one process of a service read last, for all that are forked from the same parent, later ones too: bytes that outlive each of them.

They lie in files without a name, which end with the service, so that nothing of them is left behind.
"""

import fcntl
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager


class HandedOn:
    """Some bytes, replaced whole: a process that is killed while it writes leaves those of before.

    To be made before the processes are forked that share it.
    """

    def __init__(self) -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (open as long as this lasts, written in turns)
        for file in self._files:
            weakref.finalize(self, file.close)
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._count = memoryview(self._page).cast("Q")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process is in here meanwhile; threads of one process have to see to that themselves."""
        fcntl.lockf(self._files[0].fileno(), fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._files[0].fileno(), fcntl.LOCK_UN)

    def put(self, content: bytes) -> None:
        """Replace them; to be called within `alone`. Raises OSError where the disk is full."""
        count = self._count[0] + 1
        handle = self._files[count % 2].fileno()
        os.ftruncate(handle, len(content))
        done = 0
        while done < len(content):
            done += os.pwrite(handle, content[done:], done)
        self._count[0] = count

    def get(self) -> bytes | None:
        """The last; None where none was put. To be called within `alone`."""
        count = self._count[0]
        handle = self._files[count % 2].fileno()
        return os.pread(handle, os.fstat(handle).st_size, 0) if count else None
