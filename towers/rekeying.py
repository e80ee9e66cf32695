"""A note that the secret of a run's user keys is being exchanged: until it is gone, files may be under the one or the other."""

from pathlib import Path

from towers.errors import ConfigError

JOURNAL = "rekey.json"
"""In the run_dir; written by `towers subject action=rekey` before the first file takes its place, gone after the last."""


def refuse_unfinished(run_dir: Path) -> None:
    """Raise ConfigError where an exchange was interrupted."""
    if (run_dir / JOURNAL).is_file():
        raise ConfigError(
            f"{run_dir / JOURNAL}: the secret of the user keys is being exchanged, so that files are keyed with the old one or with the"
            " new. Run the same `towers subject action=rekey` again, which ends it"
        )
