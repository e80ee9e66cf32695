"""Adding to the chain of receipts: one process at a time, on the disk before anybody is told."""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from towers.errors import ConfigError
from towers.receipts import Receipts, sealed


class Written(NamedTuple):
    """A receipt in the chain: its number from 1, and its hash."""

    number: int
    hash: str


def write_receipt(path: Path, document: Mapping[str, Any]) -> Written:
    """Append a receipt to a chain that is sound.

    Raises:
        DataError: the chain was changed.
        ConfigError: the file cannot be written.
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
        os.write(handle, line)
        os.fsync(handle)
        return Written(receipts.count + 1, found)
    finally:
        os.close(handle)
