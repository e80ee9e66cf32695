"""The disk: having it keep what was written, and when it says no, what a job tells instead of a traceback."""

import errno
import os
from pathlib import Path

from towers.errors import DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


def disk_error(error: OSError, run_dir: str) -> DataError | None:
    """The DataError for a full or closed disk; None for other failures, which are ours.

    Args:
        error: what a library raised while a job ran.
        run_dir: the job's folder, named where the library does not say which file it was.
    """
    if error.errno not in _FULL + _CLOSED:
        return None
    advice = "Free some space, or choose another run_dir" if error.errno in _FULL else "Check its permissions and its disk"
    return DataError(
        f"{error.filename or run_dir}: {os.strerror(error.errno)}. {advice}, then run the same command again; what was finished before"
        " is as it was"
    )


def append_whole(handle: int, content: bytes) -> None:
    """Have the disk keep bytes at the end of an open file, all of them or none: a full disk takes a part of what it is given.

    Raises:
        OSError: nothing was appended.
    """
    size, left = os.fstat(handle).st_size, memoryview(content)
    try:
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise


def allocate(handle: int, size: int) -> None:
    """Have an open file of a size, all of it on the disk: in a file with holes, a write to mapped memory that finds the disk full ends the
    process (SIGBUS).

    Raises:
        OSError: the disk has no room for it.
    """
    os.ftruncate(handle, size)
    os.posix_fallocate(handle, 0, size)


def sync(path: Path) -> None:
    """Have the disk keep a file's content, or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
