"""Who uses a service's state: many together, or one that changes everything in it, alone."""

import fcntl
import os
from pathlib import Path

from towers.errors import ConfigError

_FILE = ".held"


class Hold:
    """The state in use until `close`, or until the process ends, however it does.

    Args:
        state_dir: made where it is absent.
        alone: nobody else may use it meanwhile.

    Raises:
        ConfigError: it is in use otherwise, or cannot be written.
    """

    def __init__(self, state_dir: Path, alone: bool = False) -> None:
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(state_dir / _FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"serving.state_dir: {state_dir} cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(self._handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            by = "a service or another job is using it; stop that first" if alone else "the secret of its user keys is being exchanged"
            raise ConfigError(f"serving.state_dir: {state_dir}: {by}") from error

    def close(self) -> None:
        """Release it."""
        os.close(self._handle)
