"""serve.json: where the one service of a run answers, for whoever starts or asks it."""

import errno
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType

from towers.errors import ConfigError
from towers.job import write_json

_PLACE = "serve.json"
_LOCK = ".serving"


class Announcement:
    """The right to serve a run, until `close` or the end of the process, however it ends; workers that it forks have no part in it.

    Args:
        run_dir: of the run, made where it is absent.

    Attributes:
        path: of serve.json, which belongs to this process alone.

    Raises:
        ConfigError: another process serves the run; names it and its address.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / _PLACE
        run_dir.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(run_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._lock, 20).decode(errors="replace")
            os.close(self._lock)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise ConfigError(
                f"run_dir: {run_dir} is served already, by process {holder}{_address(self.path, holder)}. Stop that one first; for more"
                " processes behind one address take serving.workers, for another service of this bundle another run_dir and serving.bundle"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def clear(self) -> None:
        """Remove what a former service left, that nobody who waits for this one reads it."""
        self.path.unlink(missing_ok=True)

    def write(self, url: str, state: str) -> Path:
        """Say where requests go, and whether they are answered (`listening`, `stopped`); which bundle answers, the service is asked."""
        return write_json(self.path, {"url": url, "pid": os.getpid(), "state": state})

    def close(self) -> None:
        """Give the right up."""
        os.close(self._lock)

    def __enter__(self) -> "Announcement":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _address(path: Path, holder: str) -> str:
    """Where the process that holds the right answers; "" while it only starts."""
    try:
        told = json.loads(path.read_text())
        return f" at {told['url']}" if str(told["pid"]) == holder else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
