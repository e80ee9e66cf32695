"""Adding to the chain of receipts: one process at a time, on the disk before anybody is told."""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from towers.disk import append_whole
from towers.errors import ConfigError, StorageError
from towers.receipts import Receipts, sealed


class Written(NamedTuple):
    """A receipt in the chain: its number from 1, and its hash."""

    number: int
    hash: str


def write_receipt(path: Path, document: Mapping[str, Any]) -> Written:
    """Append a receipt to a chain that is sound; the beginning of one that was never written whole makes room for it.

    Raises:
        DataError: the chain was changed.
        StorageError: the disk does not take the receipt; none of it was written.
        ConfigError: the file cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise ConfigError(
            f"receipts {path}: {error.strerror}. Set serving.receipts and identity.receipts to a file that can be written and that no"
            " backup of the run brings back"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        receipts = Receipts(path)
        receipts.fresh()
        line, found = sealed(document, receipts.last)
        if receipts.torn:
            os.ftruncate(handle, os.fstat(handle).st_size - receipts.torn)
        append_whole(handle, b"\n" + line if receipts.unended else line)
        return Written(receipts.count + 1, found)
    except OSError as error:
        raise StorageError(f"receipts {path}: {error.strerror}, so no receipt can be written; free some space, then ask again") from error
    finally:
        os.close(handle)
