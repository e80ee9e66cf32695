"""One job of a kind at a time in a run's folder, and what one that was killed left there of people's rows.

Whoever holds a folder has removed what a killed one left before, so a removal of people finds either nobody at work, and removes it
itself, or only files of a job that looks at whose rows they hold before each takes its place (`towers.last_look`).
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from towers.errors import ConfigError

PREPARED, OLD = "prepared", "prepared.old"
_PATIENCE_S, _LOOK_S = 1.0, 0.02
"""How long a job waits for a removal, which holds a folder while it deletes files."""


class Work(NamedTuple):
    """Jobs that exclude each other in a run's folder.

    Attributes:
        name: in words.
        lock: file in the run's folder.
        leaves: patterns of what it writes before it takes its place, below the run's folder.
    """

    name: str
    lock: str
    leaves: Sequence[str]


LEARNING = Work(
    "training, preparation or export",
    ".training.lock",
    (
        "prepared.tmp", "audit.parquet.tmp", "export/*.tmp", "export/*.tmp.left", "export/users/*.tmp", "export/users/*.tmp.left",
        ".export-*",
    ),
)  # fmt: skip
LISTING = Work("making of lists", ".recommend.lock", ("recommendations/*.tmp", "recommendations/*.tmp.left"))
SWEEPING = Work("sweep", ".sweep.lock", ("sweep/*.tmp", "sweep/*.tmp.left"))
JOINING = Work("joining of feedback", ".feedback.lock", ("feedback.tmp",))


@contextmanager
def alone_in(run_dir: Path, wanted: bool = True, work: Work = LEARNING) -> Iterator[None]:
    """Hold a run's folder: two trainings would prune each other's checkpoints, and new prepared data would not be those of the model that
    a training leaves or an export reads. The lock goes with the process, however it ends.

    Args:
        run_dir: the run.
        wanted: False does nothing: of several processes of one training the first holds the folder for all.
        work: what is done there.

    Raises:
        ConfigError: another process does the like there; names it.
    """
    if not wanted:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(run_dir / work.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + _PATIENCE_S
        while not _held(handle):
            if time.monotonic() > until:
                holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                raise ConfigError(
                    f"run_dir: another {work.name} (pid {holder}) runs in {run_dir}. Wait for it, end it, or use another"
                ) from None
            time.sleep(_LOOK_S)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        _remove(run_dir, work)
        yield
    finally:
        os.close(handle)


def remove_left(run_dir: Path) -> None:
    """Remove what killed jobs left beside the places that it was to take; where a job is at work, it has done so."""
    for work in (LEARNING, LISTING, SWEEPING, JOINING):
        if _left(run_dir, work) or (work is LEARNING and (run_dir / OLD).exists()):
            handle = os.open(run_dir / work.lock, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if _held(handle):
                    _remove(run_dir, work)
            finally:
                os.close(handle)


def _held(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _left(run_dir: Path, work: Work) -> list[Path]:
    return [path for pattern in work.leaves for path in run_dir.glob(pattern)]


def _remove(run_dir: Path, work: Work) -> None:
    old = run_dir / OLD
    if work is LEARNING and old.exists() and not (run_dir / PREPARED).exists():
        os.rename(old, run_dir / PREPARED)  # killed between two renames: these are the data of the run
    for path in [*_left(run_dir, work), *([old] if work is LEARNING else [])]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
