"""The errors Towers raises on purpose, and the exit code of each.

TowersError
|-- ConfigError   2   a setting is wrong: names the key, the value got, the value expected
|-- DataError     3   a file or table is wrong: names the column or file, and what to do
|   |-- BundleError   a bundle is damaged, foreign or of another format
|   `-- StorageError  something could not be written just now: a full disk, a file that others lock (HTTP 503)
|-- TrainingError 2   training left the finite numbers: names the step and the knobs to turn
|-- GateError     4   a result is below its bound and is not published
`-- RequestError      a caller's request is wrong: names the field (HTTP 4xx)
"""

from collections.abc import Iterable

EXIT_DONE, EXIT_CONFIG, EXIT_DATA, EXIT_GATE, EXIT_INTERRUPTED, EXIT_BUG = 0, 2, 3, 4, 5, 70


class TowersError(Exception):
    """Base of every error meant for a user; the message says what, got, expected and what to do."""

    exit_code = EXIT_BUG


class ConfigError(TowersError):
    """A setting is unknown, of the wrong type, or contradicts another."""

    exit_code = EXIT_CONFIG


class DataError(TowersError):
    """Input data cannot be used as it is."""

    exit_code = EXIT_DATA


class BundleError(DataError):
    """A bundle is damaged, incomplete, foreign, or of another format version."""


class StorageError(DataError):
    """Something could not be written, and nothing of it was: the disk is full or closed, or a file is locked. It may be tried again."""


class TrainingError(TowersError):
    """The loss or its gradient is not finite, and the settings that the message names can keep it so."""

    exit_code = EXIT_CONFIG


class GateError(TowersError):
    """A result misses the bound it must reach, so nothing was published."""

    exit_code = EXIT_GATE


class RequestError(TowersError):
    """A request cannot be answered as asked.

    Args:
        field: the request field at fault, as the caller spelled it (`history[3]`).
        message: what was got, what is expected.
        status: the HTTP status, 4xx.
    """

    exit_code = EXIT_DATA

    def __init__(self, field: str, message: str, status: int = 422) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        self.status = status


def listed(lines: Iterable[str], most: int = 5) -> str:
    """What a message names one by one, a line each: the first few, and how many more there are.

    >>> print("cannot be read:" + listed(["a", "b", "c"], most=2))
    cannot be read:
      a
      b
      and 1 more
    """
    told = list(lines)
    shown = told[:most] + ([f"and {len(told) - most:,} more"] if len(told) > most else [])
    return "".join(f"\n  {line}" for line in shown)
