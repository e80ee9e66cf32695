"""One training, preparation or export at a time in a run's folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from towers.errors import ConfigError

LOCK = ".training.lock"


@contextmanager
def alone_in(run_dir: Path, wanted: bool = True) -> Iterator[None]:
    """Hold a run's folder: two trainings would prune each other's checkpoints, and new prepared data would not be those of the model that
    a training leaves or an export reads. The lock goes with the process, however it ends.

    Args:
        run_dir: the run.
        wanted: False does nothing: of several processes of one training the first holds the folder for all.

    Raises:
        ConfigError: another process trains, prepares or exports there; names it.
    """
    if not wanted:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"run_dir: another training, preparation or export (pid {holder}) runs in {run_dir}. Wait for it, end it, or use another"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
